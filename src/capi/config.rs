//! Settings of a comm.

use super::argument::{Sized64, read_sized, words};
use super::status::{Answer, Failure, RUDDER_CONFIG};
use crate::config::Config;
use std::ffi::c_char;

/// Settings of a comm. Where a function takes a pointer to it, NULL means defaults.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_config {
    /// sizeof(rudder_config). A shorter one, of an older header, is accepted, and so is a longer one whose further bytes are zero.
    pub struct_size: u64,
    /// A JSON object, or NULL for defaults; an unknown key is an error. Such as
    ///
    /// ```json
    /// {"buffer": "25%", "policy": "lfu", "controller": "off", "gather_timeout": 30}
    /// ```
    ///
    /// docs/c.md lists all keys. RUDDER_* variables (RUDDER_BUFFER, RUDDER_TRANSPORT...) override them.
    pub settings: *const c_char,
}

// SAFETY: an integer and a pointer.
unsafe impl Sized64 for rudder_config {
    const NAME: &'static str = "rudder_config";
    const LEAST: usize = 16;
}

/// # Safety
/// `config` is NULL or as the header says, during the call.
pub(super) unsafe fn read_config(config: *const rudder_config) -> Answer<Config> {
    if config.is_null() {
        return Ok(Config::default());
    }
    // SAFETY: the caller's promise.
    let settings = unsafe { words(read_sized(config)?.settings, "settings")? };
    let Some(settings) = settings else { return Ok(Config::default()) };
    let wrong = |cause: String| Failure::new(RUDDER_CONFIG, format!("configuration: settings: {cause}"));
    // A list of the fields' values in their order would be read too, and mean something else in the next version.
    if !settings.trim_start().starts_with('{') {
        return Err(wrong("expected a JSON object, such as {\"buffer\": \"25%\"}".into()));
    }
    serde_json::from_str(settings).map_err(|cause| wrong(cause.to_string()))
}
