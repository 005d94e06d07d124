//! Whole, damaged and made-up files.

use proptest::prelude::*;

use super::*;
use crate::checkpoint::writer;
use crate::kernels::ElementType;

fn sample() -> writer::Gguf {
    writer::Gguf::default()
        .text("general.architecture", "thing")
        .u32("a.count", 7)
        .f32("a.share", 0.1)
        .bool("a.flag", true)
        .raw("a.small", 1, &(-3i8).to_le_bytes())
        .texts("a.words", &["x", "", "zwölf"])
        .i32s("a.numbers", &[1, -2])
        .tensor("one", 0, &[2, 3], vec![1; 24])
        .tensor("two", 8, &[1, 32], vec![2; 34])
}

fn error(file: &[u8]) -> String {
    Container::read("f", file).unwrap_err().to_string()
}

#[test]
fn keys_and_tensors() {
    for (version, alignment) in [(3, 0), (2, 8), (3, 64)] {
        let mut made = sample();
        (made.version, made.alignment) = (version, alignment);
        let file = made.bytes();
        let container = Container::read("f", &file).unwrap();
        let key = |name: &str| &container.keys[name];
        assert_eq!(key("general.architecture"), &Value::Text("thing".to_owned()));
        assert_eq!((key("a.count").whole(), key("a.count").float()), (Some(7), Some(7.0)));
        assert_eq!((key("a.share").whole(), key("a.share").float()), (None, Some(f64::from(0.1f32))));
        assert_eq!((key("a.flag").whole(), key("a.small").whole()), (Some(1), None));
        let Value::Array(words) = key("a.words") else { panic!() };
        assert_eq!(words.texts(&file).unwrap(), ["x", "", "zwölf"]);
        assert!(words.numbers(&file).is_err());
        let Value::Array(numbers) = key("a.numbers") else { panic!() };
        assert_eq!(numbers.numbers(&file).unwrap(), [Value::Signed(1), Value::Signed(-2)]);
        assert!(numbers.texts(&file).is_err());
        let one = &container.tensors["one"];
        assert_eq!(
            (one.kind.name, one.shape.as_slice(), &file[one.range.clone()]),
            ("F32", [2, 3].as_slice(), [1u8; 24].as_slice())
        );
        let two = &container.tensors["two"];
        assert_eq!((two.kind.name, &file[two.range.clone()]), ("Q8_0", [2u8; 34].as_slice()));
    }
}

#[test]
fn every_element_type_has_its_code() {
    use ElementType as E;
    let all =
        [E::F32, E::F16, E::Bf16, E::Q4_0, E::Q4_1, E::Q5_0, E::Q5_1, E::Q8_0, E::Q2K, E::Q3K, E::Q4K, E::Q5K, E::Q6K];
    for element in all {
        let kind = GgufType::of(element);
        assert_eq!(kind.element, Some(element));
        assert_eq!(GgufType::from_code(kind.code), Some(kind));
        assert_eq!((kind.block as usize, kind.bytes as usize), element.block());
    }
}

#[test]
fn other_files_are_told_apart() {
    assert!(error(b"").contains("not a GGUF file"));
    assert!(error(b"PK\x03\x04zzzzzzzz").contains("not a GGUF file"));
    assert!(error(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(error(b"GGUF\0\0\0\x03").contains("big-endian"));
    assert!(error(b"GGUF\x03\0\0\0").contains("header"));
}

#[test]
fn damage_is_named() {
    let file = sample().bytes();
    for length in 0..file.len() {
        assert!(Container::read("f", &file[..length]).is_err(), "{length}");
    }
    assert!(error(&file[..file.len() - 1]).contains("tensor two"));
    let huge = u64::MAX.to_le_bytes();
    for (made, what) in [
        (sample().raw("k", 99, &[]), "key k: value type 99"),
        (sample().raw("k", 8, &huge), "key k: a text of"),
        (sample().list("k", 8, usize::MAX, &[]), "key k: an array of"),
        (sample().list("k", 10, 1 << 24, &[]), "key k: the file ends"),
        (sample().list("k", 9, 1, &[]), "key k: arrays of arrays"),
        (sample().raw("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "key k: it is not UTF-8"),
        (sample().u32("general.alignment", 3), "general.alignment"),
        (sample().u32("general.alignment", 0), "general.alignment"),
        (sample().tensor("bad", 99, &[1], vec![]), "tensor bad: its type 99"),
        (sample().tensor("bad", 8, &[33], vec![]), "tensor bad: [33]"),
        (sample().tensor("bad", 0, &[1 << 40, 1 << 40], vec![]), "tensor bad"),
        (sample().tensor("bad", 0, &[1 << 40], vec![]), "tensor bad: it ends behind"),
        (sample().tensor("bad", 0, &[], vec![]), "tensor bad: it has 0 dimensions"),
        (sample().tensor("bad", 0, &[1; 5], vec![]), "tensor bad: it has 5 dimensions"),
    ] {
        let got = error(&made.bytes());
        assert!(got.contains(what), "{what}: {got}");
    }
    let overlap = sample().tensor("bad", 0, &[16], vec![0; 4]).tensor("next", 0, &[16], vec![0; 128]).bytes();
    assert!(error(&overlap).contains("tensor next: it overlaps tensor bad"));
    let mut counts = b"GGUF\x03\0\0\0".to_vec();
    counts.extend([0xff; 16]);
    assert!(error(&counts).contains("announced"));
}

/// What a file's table of contents says lies inside the file, and its arrays can be read.
fn sound(bytes: &[u8]) {
    let Ok(container) = Container::read("f", bytes) else { return };
    for record in container.tensors.values() {
        let elements: u64 = record.shape.iter().map(|&size| size as u64).product();
        let data = &bytes[record.range.clone()];
        assert_eq!(elements / record.kind.block * record.kind.bytes, data.len() as u64);
    }
    for value in container.keys.values() {
        if let Value::Array(array) = value {
            let read = (array.texts(bytes).map(|list| list.len()), array.numbers(bytes).map(|list| list.len()));
            assert!(read.0.is_err() || read.1.is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        sound(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }

    #[test]
    fn flipped_bytes(flips in prop::collection::vec((0usize..420, any::<u8>()), 1..4), cut in 0usize..600) {
        let mut bytes = sample().bytes();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut);
        sound(&bytes);
    }

    #[test]
    fn any_sizes(shape in prop::collection::vec(any::<usize>(), 0..5), kind in 0u32..45, offset in any::<u64>()) {
        let mut bytes = sample().tensor("bad", kind, &shape, vec![]).bytes();
        // The offset is the record's last field; the data of the tensors before it follows.
        let at = bytes.windows(3).position(|three| three == b"bad").unwrap() + 3 + 4 + 8 * shape.len() + 4;
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        sound(&bytes);
    }
}
