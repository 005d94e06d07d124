//! Origins of browser pages, as browsers send them: in one spelling, which is compared letter by letter. Another spelling
//! of the same origin would never match.

use std::net::Ipv6Addr;

/// Ports that browsers leave out.
const LEFT_OUT: [(&str, &str); 2] = [("http", "80"), ("https", "443")];

/// Says why no browser sends `origin`.
pub(super) fn check(origin: &str) -> Result<(), &'static str> {
    let (scheme, rest) = origin.split_once("://").ok_or("it has no scheme, such as https://")?;
    if !is_scheme(scheme) {
        return Err("its scheme is none, or not in lower case");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("nothing may follow the host and port, not even a slash");
    }
    let (host, port) = host_and_port(rest);
    if !is_host(host) {
        return Err("its host is none, or not in lower case; browsers write other letters as xn--…");
    }
    match port {
        None => Ok(()),
        Some(port) if LEFT_OUT.contains(&(scheme, port)) => {
            Err("browsers leave out the port that the scheme has anyway")
        }
        Some(port) if port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port) => Ok(()),
        Some(_) => Err("its port is no number from 1 to 65535"),
    }
}

fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
}

/// An address in brackets holds colons of its own.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    let end = text.find(']').map_or(0, |bracket| bracket + 1);
    match text[end..].find(':') {
        Some(colon) => (&text[..end + colon], Some(&text[end + colon + 1..])),
        None => (text, None),
    }
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok() && !address.contains(|letter: char| letter.is_ascii_uppercase());
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}
