//! Answers Prometheus: one thread, one connection at a time, each with a deadline. Whoever connects and says nothing holds up other watchers
//! for that long, and nobody else.

use crate::transport::Waker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time to read a request, and to write an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest request.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Longest sleep: a bound on how late a lost wake-up can make the end.
const IDLE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Listens until it is dropped.
pub(crate) struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Answers with what `render` says, or that there is nothing any more.
    ///
    /// # Errors
    /// The address cannot be listened on, or the thread cannot be started.
    pub(crate) fn start(
        address: SocketAddr,
        render: impl Fn() -> Option<String> + Send + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        // A peer that is gone between the poll and the accept must not hold the thread.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), Waker::new()?);
        let (stopped, woken) = (Arc::clone(&stop), waker.clone());
        let serve = move || {
            while !stopped.load(Ordering::Acquire) {
                let mut ready =
                    [PollFd::new(&listener, PollFlags::IN), PollFd::from_borrowed_fd(woken.fd(), PollFlags::IN)];
                // An interrupted wait is a short wait.
                let _ = poll(&mut ready, Some(&IDLE));
                match listener.accept() {
                    Ok((stream, _)) => {
                        if let Err(cause) = answer(stream, &render) {
                            tracing::debug!("metrics: a watcher was not answered: {cause}");
                        }
                    }
                    Err(cause) if cause.kind() == ErrorKind::WouldBlock => {}
                    // Out of descriptors, for example: it would be as ready at once again.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new().name("rudder-metrics".into()).spawn(serve)?;
        Ok(Self { address, stop, waker, thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A connection takes two deadlines at most.
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, render: &dyn Fn() -> Option<String>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read_head(&mut stream)?;
    let (status, body) = match request.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics"] => match render() {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", "the engine is gone\n".to_owned()),
        },
        ["GET", _] => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let until = Instant::now() + PATIENCE;
    let bytes = [head.as_bytes(), body.as_bytes()].concat();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
        let written = stream.write(rest)?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        rest = &rest[written..];
    }
    Ok(())
}

/// The request's first line and fields, which end with an empty line.
fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        if head.len() >= REQUEST_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut piece = [0; 1024];
        match stream.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    //! Goal: watchers are answered, silent ones cost their deadline only, and the end waits for nobody. Method: sockets that behave well or not.

    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    }

    #[test]
    fn watchers_are_answered_one_after_another_and_nonsense_is_refused() {
        let listener =
            Listener::start("127.0.0.1:0".parse().unwrap(), || Some("rudder_hits_total 7\n".into())).unwrap();
        let address = listener.address();
        let silent = TcpStream::connect(address).unwrap();
        for _ in 0..3 {
            let said = ask(address, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
            assert!(
                said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nrudder_hits_total 7\n"),
                "{said}"
            );
        }
        assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert_eq!(ask(address, &"x".repeat(REQUEST_BYTES_MAX + 1)), "");
        drop(silent);
        let began = Instant::now();
        drop(listener);
        assert!(began.elapsed() < 3 * PATIENCE);
        assert!(TcpStream::connect(address).is_err(), "it listens no more");
    }
}
