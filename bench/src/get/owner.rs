//! The process whose rows are read: this program once more, told what to do over its standard input.

use super::hex::{from_hex, to_hex};
use super::{BATCH_BYTES_MAX, OWNER, STREAMS, open, rows};
#[cfg(feature = "fabric")]
use anyhow::Context;
use anyhow::{Result, bail};
use rudder::memory::{Access, Region};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// Pieces that the plain stream is written in: larger ones measured no faster.
const STREAM_PIECE_BYTES: usize = 1 << 20;

/// Answers lines on its standard input until that ends.
pub(super) fn serve(name: &str) -> Result<()> {
    let opened = open(name, OWNER)?;
    let transport = opened.transport;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut out = std::io::stdout();
    writeln!(out, "{} {}", to_hex(&transport.address()), listener.local_addr()?.port())?;
    out.flush()?;
    // Beside the commands, whose end ends this process whoever has not connected by then.
    std::thread::spawn(move || {
        for stream in listener.incoming().take(STREAMS).flatten() {
            std::thread::spawn(move || stream_on_demand(stream));
        }
    });
    let mut table: Option<Region> = None;
    // Dropped before the table that it offers.
    #[cfg(feature = "fabric")]
    let mut offered: Option<super::fi_read::Offered> = None;
    for line in std::io::stdin().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["connect", asker] => {
                transport.connect(&[transport.address(), from_hex(asker)?])?;
                writeln!(out, "connected")?;
            }
            ["table", rows, row_bytes] => {
                let (rows, row_bytes): (usize, usize) = (rows.parse()?, row_bytes.parse()?);
                #[cfg(feature = "fabric")]
                drop(offered.take());
                drop(table.take());
                let region = transport.allocate(rows * row_bytes, Access::RemoteRead)?;
                rows::fill(region.memory(), rows, row_bytes);
                writeln!(out, "{}", to_hex(region.token()))?;
                table = Some(region);
            }
            #[cfg(feature = "fabric")]
            ["offer"] => {
                let table = table.as_ref().context("there is no table yet")?;
                drop(offered.take());
                // SAFETY: the offer is dropped before the table, at the next one and at the end, and the table stays as it was filled.
                let offer = unsafe { super::fi_read::Offered::new(&opened.provider, table.memory()) }?;
                writeln!(out, "{}", offer.say()?)?;
                offered = Some(offer);
            }
            _ => bail!("unknown command {line:?}"),
        }
        out.flush()?;
    }
    Ok(())
}

/// A plain stream's far end: writes as many bytes as it is asked for.
fn stream_on_demand(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let bytes = vec![7; BATCH_BYTES_MAX.max(STREAM_PIECE_BYTES)];
    loop {
        let mut wanted = [0; 8];
        stream.read_exact(&mut wanted)?;
        let wanted = u64::from_le_bytes(wanted).min(bytes.len() as u64) as usize;
        for piece in bytes[..wanted].chunks(STREAM_PIECE_BYTES) {
            stream.write_all(piece)?;
        }
    }
}
