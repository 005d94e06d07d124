//! Just enough of an HTTP client to measure a server: one connection per request, JSON bodies, server-sent events.

use axum::body::Bytes;
use axum::http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A server to ask.
#[derive(Debug, Clone)]
pub struct Http {
    authority: String,
    url: String,
    authorization: Option<String>,
}

/// The server could not be asked, or did not answer as it should.
#[derive(Debug)]
pub struct HttpError {
    /// The server.
    pub url: String,
    /// What is wrong.
    pub why: String,
}

impl Http {
    /// A server at `http://host:port`, and a key for it.
    pub fn new(url: &str, key: Option<&str>) -> Result<Http, HttpError> {
        let wrong = || HttpError { url: url.into(), why: "an address like http://127.0.0.1:8000 is wanted".into() };
        let authority = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/').trim_end_matches("/v1");
        if authority.is_empty() || authority.contains('/') {
            return Err(wrong());
        }
        Ok(Http {
            authority: authority.into(),
            url: format!("http://{authority}"),
            authorization: key.map(|key| format!("Bearer {key}")),
        })
    }

    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An error of this server.
    pub fn wrong(&self, why: String) -> HttpError {
        HttpError { url: self.url.clone(), why }
    }

    /// The body of the answer to a GET.
    pub async fn get(&self, path: &str) -> Result<String, HttpError> {
        let body = self.send(Method::GET, path, String::new()).await?;
        let bytes = body.collect().await.map_err(|error| self.wrong(error.to_string()))?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Posts JSON and hands each server-sent event to `event` as it arrives, up to `[DONE]`.
    pub async fn stream(&self, path: &str, body: &str, mut event: impl FnMut(&Value)) -> Result<(), HttpError> {
        let mut body = self.send(Method::POST, path, body.to_owned()).await?;
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.wrong(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            for payload in events.push(&data) {
                if payload == "[DONE]" {
                    return Ok(());
                }
                let value = serde_json::from_str(&payload)
                    .map_err(|error| self.wrong(format!("an event is no JSON ({error}): {payload}")))?;
                event(&value);
            }
        }
        Err(self.wrong("the stream ended without [DONE]".into()))
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Incoming, HttpError> {
        let stream = match self.authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => TcpStream::connect(&self.authority).await,
            _ => TcpStream::connect((self.authority.as_str(), 80)).await,
        };
        let stream = stream.map_err(|error| self.wrong(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.wrong(error.to_string()))?;
        // Ends by itself when the answer has been read or dropped.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| self.wrong(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| self.wrong(error.to_string()))?;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(self.wrong(format!("{path} answers {status}: {}", String::from_utf8_lossy(&bytes))))
    }
}

/// Cuts a byte stream into the payloads of its events.
#[derive(Debug, Default)]
struct Events {
    rest: Vec<u8>,
}

impl Events {
    fn push(&mut self, data: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(data);
        let mut payloads = Vec::new();
        while let Some(at) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..at + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let lines = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start);
            let payload = lines.collect::<Vec<_>>().join("\n");
            // Comments keep a connection open and say nothing.
            if !payload.is_empty() {
                payloads.push(payload);
            }
        }
        payloads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_are() {
        let stream = "data: {\"a\": \"ä\"}\n\n: keep-alive\n\ndata: 1\ndata: 2\n\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let payloads: Vec<String> = stream.as_bytes().chunks(size).flat_map(|part| events.push(part)).collect();
            assert_eq!(payloads, ["{\"a\": \"ä\"}", "1\n2", "[DONE]"], "pieces of {size}");
        }
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(Http::new(url, None).unwrap().authority, "h:1");
        }
        assert_eq!(Http::new("http://h", Some("a")).unwrap().authorization.as_deref(), Some("Bearer a"));
        for url in ["https://h", "h:1", "http://", "http://h/x/y"] {
            assert!(Http::new(url, None).is_err(), "{url}");
        }
    }
}
