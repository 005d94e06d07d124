//! The sums by which the hub names a file's bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::Digest;

/// The sums that an etag can be.
pub(super) enum Sum {
    /// SHA-256 of a large file's bytes.
    Sha256,
    /// Git's SHA-1 of a small file.
    Git,
}

impl Sum {
    /// `None` for etags of other forms, which say nothing about the bytes.
    pub(super) fn of(etag: &str) -> Option<Sum> {
        match etag.len() {
            _ if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            64 => Some(Sum::Sha256),
            40 => Some(Sum::Git),
            _ => None,
        }
    }
}

/// Whether a file's bytes have the sum that its etag is, as far as that can be told.
pub(super) fn agrees(path: &Path, etag: &str, size: u64) -> std::io::Result<bool> {
    let found = match Sum::of(etag) {
        None => return Ok(true),
        Some(Sum::Sha256) => sum(path, sha2::Sha256::new())?,
        Some(Sum::Git) => sum(path, sha1::Sha1::new().chain_update(format!("blob {size}\0")))?,
    };
    Ok(found.eq_ignore_ascii_case(etag))
}

fn sum(path: &Path, mut state: impl Digest) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => break,
            count => state.update(&block[..count]),
        }
    }
    Ok(state.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
