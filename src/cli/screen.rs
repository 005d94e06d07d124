//! A terminal on which the last part of a text may still change: what is committed stays, the draft below it is drawn
//! again at every step.
//!
//! Pure text: the caller writes what [`Screen`] returns. Nothing here waits or reads.

/// Begins a line again and clears to the end of the screen.
const CLEAR: &str = "\r\x1b[J";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const DIM: &str = "\x1b[2m";
const DRAFT: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// What the terminal shows below the committed lines.
#[derive(Debug)]
pub struct Screen {
    columns: usize,
    rows: usize,
    /// The unfinished last line of the committed text: it is drawn again with every draft that follows it.
    tail: String,
    /// Lines drawn below (and including) the one where drawing began.
    drawn: usize,
}

impl Screen {
    /// A screen of this size; sizes of 0 are taken as 80 × 24.
    pub fn new(columns: usize, rows: usize) -> Screen {
        let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        Screen { columns: or(columns, 80).max(8), rows: or(rows, 24).max(4), tail: String::new(), drawn: 0 }
    }

    /// The terminal was resized; the next drawing uses the new size.
    pub fn resize(&mut self, columns: usize, rows: usize) {
        (self.columns, self.rows) = (columns.max(8), rows.max(4));
    }

    /// Adds text that will not change any more.
    pub fn commit(&mut self, text: &str) -> String {
        let mut out = self.erase();
        self.tail.push_str(&printable(text));
        let lines = wrap(&self.tail, self.columns);
        let (last, whole) = lines.split_last().map_or(("", &[][..]), |(last, whole)| (last.as_str(), whole));
        for line in whole {
            out.push_str(line);
            out.push('\n');
        }
        out.push_str(last);
        self.tail = last.to_owned();
        self.drawn = 1;
        out
    }

    /// Draws the draft that follows the committed text, and a status line below it.
    pub fn draft(&mut self, text: &str, status: &str) -> String {
        let mut out = HIDE_CURSOR.to_owned();
        out.push_str(&self.erase());
        let whole = format!("{}{}", self.tail, printable(text).trim_end());
        let mut lines = wrap(&whole, self.columns);
        // What has scrolled off the top cannot be drawn again, so a draft never fills the screen.
        lines.truncate(self.rows.saturating_sub(2).max(1));
        let committed = self.tail.chars().count();
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                out.push('\n');
            }
            let kept: String = line.chars().take(if number == 0 { committed } else { 0 }).collect();
            let rest: String = line.chars().skip(if number == 0 { committed } else { 0 }).collect();
            out.push_str(&kept);
            out.push_str(DRAFT);
            out.push_str(&rest);
            out.push_str(PLAIN);
        }
        let status: String = status.chars().take(self.columns - 1).collect();
        out.push_str(&format!("\n{DIM}{status}{PLAIN}"));
        self.drawn = lines.len() + 1;
        out
    }

    /// Removes the draft and gives the cursor back.
    pub fn finish(&mut self) -> String {
        let mut out = self.erase();
        out.push_str(&self.tail);
        if !self.tail.is_empty() {
            out.push('\n');
        }
        out.push_str(PLAIN);
        out.push_str(SHOW_CURSOR);
        self.tail.clear();
        self.drawn = 0;
        out
    }

    /// Moves to the beginning of what was drawn and clears it.
    fn erase(&mut self) -> String {
        let up = self.drawn.saturating_sub(1);
        self.drawn = 0;
        if up > 0 { format!("\x1b[{up}A{CLEAR}") } else { CLEAR.to_owned() }
    }
}

/// Model output may hold anything: control characters would move the cursor or worse. Tabs become spaces, all others go.
fn printable(text: &str) -> String {
    text.replace('\t', "    ").chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}

/// How many columns a character takes at most. Counting a narrow character as wide only breaks a line early; the other
/// way round would lose count of the lines.
fn width(character: char) -> usize {
    if character < '\u{1100}' { 1 } else { 2 }
}

/// Cuts text into lines that fit, at spaces where there are any. Every character is kept except the space at a cut;
/// text that ends with a line feed has an empty last line.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.saturating_sub(1).max(1);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        let mut used = 0;
        for character in paragraph.chars() {
            if used + width(character) > columns {
                let cut = line.rfind(' ').filter(|_| character != ' ');
                let carried = cut.map(|at| line.split_off(at)[1..].to_owned()).unwrap_or_default();
                lines.push(std::mem::replace(&mut line, carried));
                used = line.chars().map(width).sum();
                if character == ' ' && line.is_empty() {
                    continue;
                }
            }
            line.push(character);
            used += width(character);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal with just the sequences used here.
    #[derive(Default)]
    struct Terminal {
        lines: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Terminal {
        fn write(&mut self, text: &str) {
            let mut rest = text;
            while let Some(character) = rest.chars().next() {
                if let Some(sequence) = rest.strip_prefix("\x1b[") {
                    let end = sequence.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                    match &sequence[end..=end] {
                        "A" => self.row -= sequence[..end].parse::<usize>().unwrap(),
                        "J" => {
                            self.lines.truncate(self.row + 1);
                            let column = self.column;
                            self.line().truncate(column);
                        }
                        _ => {}
                    }
                    rest = &sequence[end + 1..];
                    continue;
                }
                match character {
                    '\r' => self.column = 0,
                    '\n' => (self.row, self.column) = (self.row + 1, 0),
                    _ => {
                        let column = self.column;
                        let line = self.line();
                        line.resize(line.len().max(column + 1), ' ');
                        line[column] = character;
                        self.column += 1;
                    }
                }
                rest = &rest[character.len_utf8()..];
            }
        }

        fn line(&mut self) -> &mut Vec<char> {
            self.lines.resize(self.lines.len().max(self.row + 1), Vec::new());
            &mut self.lines[self.row]
        }

        fn text(&self) -> String {
            self.lines.iter().map(|line| line.iter().collect::<String>()).collect::<Vec<_>>().join("\n")
        }
    }

    #[test]
    fn drafts_replace_each_other_and_committed_text_stays() {
        let (mut screen, mut terminal) = (Screen::new(20, 10), Terminal::default());
        terminal.write(&screen.draft("zzz zzz zzz zzz zzz zzz zzz", "step 1"));
        terminal.write(&screen.draft("Once upon", "step 2"));
        assert_eq!(terminal.text(), "Once upon\nstep 2");
        terminal.write(&screen.commit("Once upon a time there was"));
        terminal.write(&screen.draft(" xx yy", "step 1"));
        terminal.write(&screen.draft(" a fox with a very long tail", "step 2"));
        assert_eq!(terminal.text(), "Once upon a time\nthere was a fox\nwith a very long\ntail\nstep 2");
        terminal.write(&screen.commit(" a fox.\nThe end."));
        terminal.write(&screen.finish());
        assert_eq!(terminal.text(), "Once upon a time\nthere was a fox.\nThe end.");
    }

    #[test]
    fn a_draft_never_fills_the_screen() {
        let (mut screen, mut terminal) = (Screen::new(10, 5), Terminal::default());
        for _ in 0..3 {
            terminal.write(&screen.draft(&"word ".repeat(60), "s"));
            assert_eq!(terminal.lines.len(), 4);
        }
        terminal.write(&screen.finish());
        assert_eq!(terminal.text(), "");
    }

    #[test]
    fn control_characters_of_the_model_do_not_reach_the_terminal() {
        let mut screen = Screen::new(40, 10);
        let out = screen.commit("a\x1b[2Jb\x07\tc\r");
        assert!(out.ends_with("a[2Jb    c"), "{out:?}");
    }

    #[test]
    fn lines_are_cut_at_spaces_and_long_words_anyway() {
        assert_eq!(wrap("aa bb cc", 6), ["aa bb", "cc"]);
        assert_eq!(wrap("abcdefgh", 5), ["abcd", "efgh"]);
        assert_eq!(wrap("a\n", 5), ["a", ""]);
        assert_eq!(wrap("日本語です", 6), ["日本", "語で", "す"]);
        assert_eq!(wrap("aaaa bbbb", 5), ["aaaa", "bbbb"]);
    }

    #[test]
    fn tiny_terminals_do_no_harm() {
        for (columns, rows) in [(0, 0), (1, 1), (2, 3)] {
            let mut screen = Screen::new(columns, rows);
            screen.draft("text that is long", "status");
            screen.commit("text");
            screen.finish();
        }
    }
}
