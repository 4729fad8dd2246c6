//! The pilot's vocabulary: each word and number of its texts is one token, and everything else is spelt in bytes.
//!
//! It is a byte-level BPE like other models', so that the same tokenizer reads it. A word's token is merged from its left end on. Texts put a space
//! before every word, and merges of what begins with one come first, so that no merge within a word gets in the way of another word's.

use rudder::controller::planner::{PLANS, words};

/// Tokens, and the merges that make them.
pub struct Vocabulary {
    /// By number: bytes as GPT-2 writes them, then what is merged of them.
    pub tokens: Vec<String>,
    /// Pairs, in the order in which they are merged.
    pub merges: Vec<String>,
}

/// How GPT-2 writes a byte: as itself where that can be seen, and as a letter beyond those otherwise.
fn letter(byte: u8) -> char {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if seen(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !seen(other)).count() as u32;
    char::from_u32(256 + before).expect("it is a letter")
}

impl Vocabulary {
    /// Of the words that situations and plans are told in.
    pub fn new() -> Self {
        let mut vocabulary =
            Self { tokens: (0..=255).map(|byte| letter(byte).to_string()).collect(), merges: Vec::new() };
        let (names, numbers) = words();
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        for word in names.iter().copied().chain(numbers.iter().map(String::as_str)) {
            vocabulary.add(&format!(" {word}"));
        }
        // What stands around a prompt's parts, and the answers, which no space comes before: no answer has the beginning of another one inside.
        for word in ["\n\n", "Answer"].into_iter().chain(PLANS.map(|plan| plan.name)) {
            vocabulary.add(word);
        }
        vocabulary
    }

    fn add(&mut self, word: &str) {
        let letters: Vec<String> = word.bytes().map(|byte| letter(byte).to_string()).collect();
        let mut left = letters[0].clone();
        for right in &letters[1..] {
            let both = left.clone() + right;
            if !self.tokens.contains(&both) {
                self.merges.push(format!("{left} {right}"));
                self.tokens.push(both.clone());
            }
            left = both;
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is said often is short. Method: letters by hand; the tokens of texts are tested where a model is written.
    use super::*;

    #[test]
    fn bytes_are_written_as_gpt_2_writes_them() {
        assert_eq!([b' ', b'\n', b'a', 0xff, 0].map(letter), ['Ġ', 'Ċ', 'a', 'ÿ', 'Ā']);
    }

    #[test]
    fn no_token_is_there_twice() {
        let mut tokens = Vocabulary::new().tokens;
        assert!(tokens.len() < 1024, "{}", tokens.len());
        let count = tokens.len();
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), count);
    }
}
