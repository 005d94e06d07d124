//! `canvasd health`: asks a server whether it is well. For container health checks, where no curl is at hand.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::Args;

use super::{CliError, options};

/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Options of `canvasd health`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The server [default: the host and port that `serve` would take from the environment, CANVASD_CONFIG included].
    #[arg(value_name = "URL")]
    url: Option<String>,
}

/// Succeeds if the server answers `GET /health` with 200.
pub fn run(arguments: Arguments) -> Result<(), CliError> {
    let url = match arguments.url {
        Some(url) => url,
        None => {
            let config = options::configure(None, &[])?;
            // The address for "any interface" is listened on, but cannot be asked.
            let host = match config.host.as_str() {
                "0.0.0.0" => "127.0.0.1",
                "::" => "[::1]",
                other => other,
            };
            format!("http://{host}:{}", config.port)
        }
    };
    match ask(&url) {
        Ok(status) if status.contains(" 200 ") => Ok(()),
        Ok(status) => Err(CliError::Unhealthy { url, why: format!("the answer is {status:?}") }),
        Err(why) => Err(CliError::Unhealthy { url, why }),
    }
}

/// The status line of the answer to `GET /health`.
fn ask(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or("an address like http://127.0.0.1:8000 is wanted")?;
    let authority = rest.split('/').next().unwrap_or(rest);
    let with_port = if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let addresses = with_port.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match talk(address, authority) {
            Ok(status) => return Ok(status),
            Err(error) => last = words(&error),
        }
    }
    Err(last)
}

/// What went wrong. The system has several names for an answer that does not come, and none of them says so.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
        _ => error.to_string(),
    }
}

fn talk(address: std::net::SocketAddr, authority: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /health HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    // The status line is short; a peer that sends none is no server of ours.
    stream.take(256).read_to_end(&mut head)?;
    let text = String::from_utf8_lossy(&head);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_says_nothing_gives_no_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        assert_eq!(ask(&url).unwrap_err(), "no answer within 3 s");
    }
}
