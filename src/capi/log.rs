//! What the library tells on standard error, where `RUDDER_DEBUG` asks for it.

use std::sync::Once;
use tracing_subscriber::EnvFilter;

/// Tells each choice and why (transport, NIC, buffer, model), from the first comm on, at the level that `RUDDER_DEBUG` names: `error`,
/// `warn`, `info`, `debug`, `trace`. Without the variable nothing is set up: a program in Rust may have a subscriber of its own, which stays.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(level) = std::env::var("RUDDER_DEBUG") else { return };
        let filter = match EnvFilter::try_new(format!("rudder={}", level.trim().to_ascii_lowercase())) {
            Ok(filter) => filter,
            Err(_) => EnvFilter::new("rudder=info"),
        };
        let told = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
        // Somebody else's subscriber hears the same.
        let _ = told.without_time().try_init();
    });
}
