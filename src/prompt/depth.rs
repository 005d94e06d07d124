//! How deep a schema leads whoever follows its references. Compiling one recurses, and a chain of references is as long as
//! the client likes, though the JSON itself is nested by 128 at most. Pure.

use std::collections::HashSet;

use serde_json::Value;

/// Most levels, all references together, that a schema may have. Schemas with hundreds of definitions stay below.
pub(super) const MOST: usize = 5_000;

/// Stack for compiling that many levels: 13 kB for each.
pub(super) const STACK: usize = 64 << 20;

/// No more levels than this are passed on the way through the schema: its own nesting, and that of everything that is
/// referred to.
pub(super) fn levels(root: &Value) -> usize {
    let mut seen = HashSet::new();
    let mut pending = vec![root];
    let mut levels = 0;
    while let Some(schema) = pending.pop() {
        levels += look(root, schema, &mut seen, &mut pending);
    }
    levels
}

/// The nesting of a value; what it refers to for the first time goes to `pending`.
fn look<'a>(root: &'a Value, value: &'a Value, seen: &mut HashSet<&'a str>, pending: &mut Vec<&'a Value>) -> usize {
    let inside = match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
                pending.extend(target.filter(|_| seen.insert(reference)));
            }
            map.values().map(|value| look(root, value, seen, pending)).max()
        }
        Value::Array(values) => values.iter().map(|value| look(root, value, seen, pending)).max(),
        _ => None,
    };
    1 + inside.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::levels;

    #[test]
    fn levels_are_counted_through_references_once() {
        assert_eq!(levels(&json!({})), 1);
        assert_eq!(levels(&json!({"type": "object", "properties": {"a": {"type": "integer"}}})), 4);
        let circle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}});
        assert_eq!(levels(&circle), 5 + 3);
        assert_eq!(levels(&json!({"$ref": "https://example.org/schema"})), 2);
    }
}
