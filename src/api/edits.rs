//! The difference between two drafts of a canvas: few, small replacements. Pure text.

use super::wire::progress::Edit;

/// Most cells of the table in which common pieces are looked for; beyond it the middle is replaced as a whole.
const MOST_CELLS: usize = 1 << 18;

/// What turns `old` into `new`, in ascending order, each replacement made in the text that the one before has left.
pub(super) fn edits(old: &str, new: &str) -> Vec<Edit> {
    let (old, new) = (pieces(old), pieces(new));
    let mut edits = Vec::new();
    let (mut done_old, mut done_new, mut at) = (0, 0, 0);
    let mut kept = kept(&old, &new);
    kept.push((old.len(), new.len()));
    for (next_old, next_new) in kept {
        let remove = length(&old[done_old..next_old]);
        let insert = new[done_new..next_new].concat();
        let inserted = insert.chars().count();
        if remove > 0 || inserted > 0 {
            edits.push(Edit { at, remove, insert });
        }
        at += inserted + new.get(next_new).map_or(0, |piece| length(&[piece]));
        (done_old, done_new) = (next_old + 1, next_new + 1);
    }
    edits
}

/// Code points of these pieces.
fn length(pieces: &[&str]) -> usize {
    pieces.iter().map(|piece| piece.chars().count()).sum()
}

/// A text as words, stretches of white space and single other characters: what a reader sees change.
fn pieces(text: &str) -> Vec<&str> {
    #[derive(PartialEq)]
    enum Kind {
        Word,
        Space,
        Other,
    }
    let kind = |c: char| match c {
        c if c.is_alphanumeric() => Kind::Word,
        c if c.is_whitespace() => Kind::Space,
        _ => Kind::Other,
    };
    let mut pieces = Vec::new();
    let mut from = 0;
    let mut last = Kind::Other;
    for (at, c) in text.char_indices() {
        let this = kind(c);
        if at > from && (this != last || this == Kind::Other) {
            pieces.push(&text[from..at]);
            from = at;
        }
        last = this;
    }
    if from < text.len() {
        pieces.push(&text[from..]);
    }
    pieces
}

/// Places of the pieces that both texts keep, in order: what they share at both ends, and a longest common sequence
/// between.
fn kept(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    let mut kept: Vec<(usize, usize)> = (0..head).map(|i| (i, i)).collect();
    kept.extend(common(old_middle, new_middle).into_iter().map(|(i, j)| (head + i, head + j)));
    kept.extend((0..tail).map(|i| (old.len() - tail + i, new.len() - tail + i)));
    kept
}

/// A longest common sequence, by the table of what is left of it from each pair of places on.
fn common(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    if old.is_empty() || new.is_empty() || old.len().saturating_mul(new.len()) > MOST_CELLS {
        return Vec::new();
    }
    let mut left = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            left[i * width + j] = if old[i] == new[j] {
                left[(i + 1) * width + j + 1] + 1
            } else {
                left[(i + 1) * width + j].max(left[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut common = Vec::new();
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            common.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if left[(i + 1) * width + j] >= left[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(old: &str, edits: &[Edit]) -> String {
        let mut screen: Vec<char> = old.chars().collect();
        for edit in edits {
            screen.splice(edit.at..edit.at + edit.remove, edit.insert.chars());
        }
        screen.into_iter().collect()
    }

    fn edit(at: usize, remove: usize, insert: &str) -> Edit {
        Edit { at, remove, insert: insert.into() }
    }

    #[test]
    fn only_what_changes_is_sent() {
        let (old, new) = ("Once upon fox time, a blue fox sang.", "Once upon a time, a small fox sang!");
        let expected = [edit(10, 3, "a"), edit(20, 4, "small"), edit(34, 1, "!")];
        assert_eq!(edits(old, new), expected);
        assert!(edits("same", "same").is_empty() && edits("", "").is_empty());
        assert_eq!(edits("", "abc"), [edit(0, 0, "abc")]);
        assert_eq!(edits("äxé ö", "ö"), [edit(0, 4, "")]);
    }

    #[test]
    fn what_is_too_large_is_replaced_as_a_whole() {
        let (old, new) = ("a. ".repeat(400), "b, ".repeat(400));
        let found = edits(&format!("x {old}y"), &format!("x {new}y"));
        assert_eq!(found.len(), 1);
        assert_eq!(applied(&old, &edits(&old, &new)), new);
    }

    proptest! {
        #[test]
        fn edits_lead_from_one_draft_to_the_next(old in "[a-cé ,\n]{0,40}", new in "[a-cé ,\n]{0,40}") {
            prop_assert_eq!(applied(&old, &edits(&old, &new)), new);
        }
    }
}
