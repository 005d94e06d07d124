//! The configuration's own promises: the shipped file is complete and true, and errors name their origin.

use std::ffi::OsString;

use super::*;

const SHIPPED: &str = include_str!("../../config/canvasd.toml");

fn none(_: &str) -> Option<OsString> {
    None
}

/// The shipped file with its optional keys switched on: `# key = value` lines become `key = value`.
fn uncommented() -> String {
    let key_line = |line: &str| {
        line.strip_prefix("# ")
            .filter(|rest| KEYS.iter().any(|key| rest.starts_with(&format!("{key} = "))))
            .map(str::to_owned)
    };
    SHIPPED.lines().map(|line| key_line(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_shipped_file_shows_the_defaults_of_the_code() {
    assert_eq!(toml::from_str::<Config>(SHIPPED).unwrap(), Config::default());
}

#[test]
fn the_shipped_file_explains_every_key_and_no_other() {
    let shown: toml::Table = uncommented().parse().unwrap();
    let complete: Config = toml::from_str(&uncommented()).unwrap();
    let fields = toml::Table::try_from(&complete).unwrap();
    let names = |table: &toml::Table| table.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    let expected = KEYS.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(names(&shown), expected, "keys of config/canvasd.toml");
    assert_eq!(names(&fields), expected, "every key's example is a real value, and KEYS is complete");
    // Each key stands below a comment of its own.
    let lines: Vec<_> = SHIPPED.lines().collect();
    for key in KEYS {
        let at = lines.iter().position(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = "))).unwrap();
        assert!(lines[at - 1].starts_with("# "), "{key} has no comment above it");
    }
}

#[test]
fn an_unknown_key_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "port = 1\nprot = 2\n").unwrap();
    let error = Config::load(Some(&path), none, &[]).unwrap_err().to_string();
    assert!(error.contains("prot") && error.contains("line 2"), "{error}");
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let error = Config::load(Some(Path::new("/nowhere/c.toml")), none, &[]).unwrap_err().to_string();
    assert!(error.contains("/nowhere/c.toml"), "{error}");
}

#[test]
fn environment_beats_file_and_flags_beat_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "port = 1\nqueue = 7\nthreads = 3\n").unwrap();
    let environment = |name: &str| match name {
        "CANVASD_PORT" => Some("2".into()),
        "CANVASD_QUEUE" => Some("8".into()),
        "CANVASD_MODEL_ALIASES" => Some("gpt-4o, 17".into()),
        "CANVASD_MODEL" => Some("12".into()),
        "CANVASD_ALLOW_UNAUTHENTICATED" => Some("true".into()),
        "CANVASD_LOG" => Some(OsString::new()),
        _ => None,
    };
    let flags = [Override { key: "port", value: "3".into() }, Override { key: "kv_memory", value: "1.5GiB".into() }];
    let config = Config::load(Some(&path), environment, &flags).unwrap();
    assert_eq!((config.port, config.queue, config.threads), (3, 8, Some(3)));
    assert_eq!(config.model_aliases, ["gpt-4o", "17"]);
    assert_eq!(config.model.as_deref(), Some("12"), "a name that looks like a number stays a name");
    assert!(config.allow_unauthenticated);
    assert_eq!(config.kv_memory, Some(Bytes::mebi(1536)));
    assert_eq!(config.log, None, "an empty variable counts as not set");
    std::fs::write(&path, "log = \"debug\"\n").unwrap();
    assert_eq!(Config::load(Some(&path), none, &[]).unwrap().log.as_deref(), Some("debug"));
}

#[test]
fn a_wrong_value_names_where_it_came_from() {
    let set = |variable: &'static str, value: &'static str| {
        Config::load(None, move |name| (name == variable).then(|| value.into()), &[]).unwrap_err().to_string()
    };
    assert!(set("CANVASD_PORT", "abc").starts_with("CANVASD_PORT=abc:"));
    assert!(set("CANVASD_PORT", "70000").contains("70000"));
    assert!(set("CANVASD_PORT", "tcp://10.0.0.1:8000").contains("enableServiceLinks"));
    assert!(set("CANVASD_DEVICE", "tpu").contains("cuda:1"));
    assert!(set("CANVASD_KV_MEMORY", "lots").contains("512MiB"));
    assert!(set("CANVASD_LOG_FORMAT", "xml").contains("json"));
    let flag = Override { key: "threads", value: "-1".into() };
    assert!(Config::load(None, none, &[flag]).unwrap_err().to_string().starts_with("--threads=-1:"));
}

#[cfg(unix)]
#[test]
fn a_value_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;

    let odd = |name: &str| (name == "CANVASD_MODEL").then(|| OsString::from_vec(b"/models/caf\xe9".into()));
    let error = Config::load(None, odd, &[]).unwrap_err().to_string();
    assert!(error.contains("CANVASD_MODEL") && error.contains("UTF-8"), "{error}");
}

#[test]
fn variables_that_mean_nothing_are_found() {
    let unknown = |names: &[(&str, &str)]| {
        unknown_variables(names.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
    };
    let slips = [("CANVASD_MAX_RUNING", "2"), ("PATH", "/bin"), ("CANVASD_", "x"), ("CANVASD_API_KEYS", "k")];
    assert_eq!(unknown(&slips), ["CANVASD_", "CANVASD_API_KEYS", "CANVASD_MAX_RUNING"]);
    for key in KEYS {
        assert!(unknown(&[(&format!("CANVASD_{}", key.to_uppercase()), "1")]).is_empty(), "{key}");
    }
    assert!(unknown(&[("CANVASD_CONFIG", "c"), ("CANVASD_API_KEY", "k"), ("CANVASD_EMPTY", "")]).is_empty());
    // What Kubernetes sets for services named canvasd and canvasd-web.
    for name in ["CANVASD", "CANVASD_WEB"] {
        let links = [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "8000"),
            ("SERVICE_PORT_HTTP_API", "8000"),
            ("PORT", "tcp://10.0.0.1:8000"),
            ("PORT_8000_TCP", "tcp://10.0.0.1:8000"),
            ("PORT_8000_TCP_PROTO", "tcp"),
            ("PORT_8000_TCP_PORT", "8000"),
            ("PORT_8000_TCP_ADDR", "10.0.0.1"),
        ];
        for (rest, value) in links {
            assert!(unknown(&[(&format!("{name}_{rest}"), value)]).is_empty(), "{name}_{rest}");
        }
    }
    assert_eq!(unknown(&[("CANVASD_HTTP_PORT", "8000")]), ["CANVASD_HTTP_PORT"]);
}

#[test]
fn origins_are_written_as_browsers_send_them() {
    let check = |origin: &str| {
        let value = toml::Value::Array(vec!["https://first.example".into(), origin.into()]);
        let mut table = toml::Table::new();
        table.insert("cors_origins".into(), value);
        table.try_into::<Config>().unwrap().check()
    };
    for right in [
        "*",
        "https://a.example",
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "http://[::1]",
        "http://[::1]:3000",
        "https://xn--bcher-kva.example",
        "chrome-extension://abcdefghijklmnop",
        "https://a.example:80",
    ] {
        assert!(check(right).is_ok(), "{right}");
    }
    for wrong in [
        "",
        "https://a.example/",
        "https://a.example/chat",
        "https://a.example?x",
        "not an origin",
        "bad\u{7}",
        "https://bad\u{7}.example",
        "a.example",
        "://a.example",
        "https://",
        "https://A.example",
        "HTTPS://a.example",
        "https://bücher.example",
        "https://*.example",
        "https://user@a.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a.example:",
        "https://a.example:0",
        "https://a.example:08",
        "https://a.example:65536",
        "http://[::1",
        "http://[::g]",
        "http://[::1]x",
    ] {
        let error = check(wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("{wrong:?}")) && error.contains("scheme://host"), "{error}");
    }
}

#[test]
fn values_out_of_range_and_contradictions_are_refused() {
    let check = |key: &'static str, value: &str| Config::load(None, none, &[Override { key, value: value.into() }]);
    for key in ["threads", "queue", "max_running", "body_limit", "request_timeout_seconds"] {
        let error = check(key, "0").unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("at least 1"), "{error}");
    }
    let error = check("encode_rows", "63").unwrap_err().to_string();
    assert!(error.contains("encode_rows must be at least 64"), "{error}");
    for (key, most) in [
        ("max_running", 65_536),
        ("encode_rows", 1 << 20),
        ("max_rows_per_pass", 1 << 20),
        ("request_timeout_seconds", 31_536_000),
        ("header_timeout_seconds", 31_536_000),
        ("grace_seconds", 31_536_000),
        ("stall_timeout_seconds", 31_536_000_i64),
    ] {
        for large in [most + 1, i64::MAX] {
            let error = check(key, &large.to_string()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(&format!("at most {most}")), "{error}");
        }
        assert!(check(key, &most.to_string()).is_ok(), "{key}");
    }
    let flags = [("encode_rows", "9000"), ("max_rows_per_pass", "8000")];
    assert!(Config::load(None, none, &flags.map(|(key, value)| Override { key, value: value.into() })).is_err());
    let pair = |scheme: &str, dtype: &str| {
        let flags = [("quantize", scheme), ("dtype", dtype)];
        Config::load(None, none, &flags.map(|(key, value)| Override { key, value: value.into() }))
    };
    for dtype in ["bf16", "f32"] {
        let error = pair("q4_k_m", dtype).unwrap_err().to_string();
        assert!(error.contains("quantize (q4_k_m)") && error.contains(&format!("dtype ({dtype})")), "{error}");
    }
    assert!(check("quantize", "q4_k_m").is_ok() && check("dtype", "bf16").is_ok());
    assert!(check("threads", "100000").is_err());
    assert!(check("grace_seconds", "0").is_ok(), "no grace is a choice");
    let flags =
        [Override { key: "kv_memory", value: "1MiB".into() }, Override { key: "prefix_cache", value: "2MiB".into() }];
    assert!(Config::load(None, none, &flags).is_err());
}

#[test]
fn amounts_and_devices_read_back_as_written() {
    for (text, bytes) in [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("1kB", 1000), ("12", 12), ("0.5 KiB", 512)] {
        assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes));
        assert_eq!(Bytes(bytes).to_string().parse::<Bytes>().unwrap(), Bytes(bytes));
    }
    for wrong in ["", "MiB", "-1", "NaN", "1e30", "inf", "12 parsecs"] {
        assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
    }
    for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3), Device::Metal(0)] {
        assert_eq!(device.to_string().parse::<Device>(), Ok(device));
    }
    for wrong in ["", "cpu:0", "cpu:1", "cuda:", "cuda:x", "gpu"] {
        assert!(wrong.parse::<Device>().is_err(), "{wrong}");
    }
}
