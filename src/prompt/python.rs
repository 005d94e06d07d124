//! Values printed the way the reference's template engine prints them.
//!
//! Checkpoints' templates are written for Jinja2, where `{{ true }}` gives `True` and a list looks like Python's.

use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::ValueKind;

use super::arguments::Whole;

/// Prints a value as `str()` would: strings bare, everything else as [`write_repr`].
pub(super) fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => write_repr(out, value),
    }
}

/// Prints a value as `repr()` would.
fn write_repr(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            write_items(out, value, |out, item| write_repr(out, &item))?;
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            write_items(out, value, |out, key| {
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default())
            })?;
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

fn write_items<W: Write>(
    out: &mut W,
    value: &Value,
    mut write: impl FnMut(&mut W, Value) -> fmt::Result,
) -> fmt::Result {
    if let Ok(items) = value.try_iter() {
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.write_str(", ")?;
            }
            write(out, item)?;
        }
    }
    Ok(())
}

fn write_number(out: &mut impl Write, value: &Value) -> fmt::Result {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => write_float(out, number),
        _ => write!(out, "{value}"),
    }
}

/// The shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
fn write_float(out: &mut impl Write, number: f64) -> fmt::Result {
    if !number.is_finite() {
        return out.write_str(if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        write!(out, "{number:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(out, "{digits}e{sign}{:02}", exponent.unsigned_abs())
    }
}

fn write_quoted(out: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// How `tojson` lays its text out.
pub(super) struct JsonStyle {
    /// Spaces per level; everything on one line without.
    pub(super) indent: Option<usize>,
    /// Between items.
    pub(super) item: String,
    /// Between a key and its value.
    pub(super) key: String,
    /// Order of an object's keys.
    pub(super) keys: KeyOrder,
    /// Which characters are written as escapes.
    pub(super) escapes: Escapes,
}

/// Order of an object's keys in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyOrder {
    /// As given.
    Given,
    /// Ascending.
    Sorted,
}

/// Which characters JSON text escapes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    /// Those that must be.
    Needed,
    /// All beyond ASCII too.
    NonAscii,
}

/// Prints a value as the reference's `tojson` does: Python's `json.dumps`, nothing escaped for HTML.
pub(super) fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.write_str("null"),
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if !number.is_finite() => out.write_str(if number.is_nan() {
                "NaN"
            } else if number > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }),
            _ => write_number(out, value),
        },
        ValueKind::String => write_json_string(out, value.as_str().unwrap_or_default(), style.escapes),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            write_json_block(out, ['[', ']'], style, depth, &items, |out, item| write_json(out, item, style, depth + 1))
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            if style.keys == KeyOrder::Sorted {
                keys.sort();
            }
            write_json_block(out, ['{', '}'], style, depth, &keys, |out, key| {
                let mut name = String::new();
                write_str(&mut name, key)?;
                write_json_string(out, &name, style.escapes)?;
                out.push_str(&style.key);
                write_json(out, &value.get_item(key).unwrap_or_default(), style, depth + 1)
            })
        }
        _ if value.downcast_object_ref::<Whole>().is_some() => write!(out, "{value}"),
        _ => write_json_string(out, &value.to_string(), style.escapes),
    }
}

fn write_json_block(
    out: &mut String,
    brackets: [char; 2],
    style: &JsonStyle,
    depth: usize,
    items: &[Value],
    mut write: impl FnMut(&mut String, &Value) -> fmt::Result,
) -> fmt::Result {
    let break_line = |out: &mut String, depth: usize| {
        if let (Some(indent), false) = (style.indent, items.is_empty()) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    };
    out.push(brackets[0]);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item);
        }
        break_line(out, depth + 1);
        write(out, item)?;
    }
    break_line(out, depth);
    out.push(brackets[1]);
    Ok(())
}

fn write_json_string(out: &mut String, text: &str, escapes: Escapes) -> fmt::Result {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 => write!(out, "\\u{:04x}", u32::from(c))?,
            c if !c.is_ascii() && escapes == Escapes::NonAscii => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}
