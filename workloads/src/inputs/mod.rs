//! Input files, made when they are needed: the same bytes everywhere, from a seed.

pub mod c;

use serde::{Deserialize, Serialize};

use crate::guest::Random;

/// A file that a workload reads.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct InputFile {
    /// Its name in the working directory.
    pub name: String,
    /// What is in it.
    #[serde(flatten)]
    pub content: Content,
}

/// How a file's bytes are made.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(tag = "make", rename_all = "lowercase", deny_unknown_fields)]
pub enum Content {
    /// As it stands here.
    Literal {
        /// All of it.
        text: String,
    },
    /// Lines of words with the frequencies of a natural language (Zipf's law), in sentences.
    Text {
        /// At least that many.
        bytes: usize,
        /// Another seed, another text.
        seed: u64,
    },
    /// C source, as the workload gcc compiles it.
    C {
        /// How many functions.
        functions: usize,
        /// Another seed, another source.
        seed: u64,
    },
    /// Bytes that nothing can compress.
    Random {
        /// How many.
        bytes: usize,
        /// Another seed, other bytes.
        seed: u64,
    },
    /// Integers of all lengths, one a line.
    Numbers {
        /// How many.
        count: usize,
        /// Another seed, other numbers.
        seed: u64,
    },
}

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Literal { text } => text.clone().into_bytes(),
            Self::Text { bytes, seed } => text(*bytes, *seed),
            Self::C { functions, seed } => c::source(*functions, *seed).into_bytes(),
            Self::Random { bytes, seed } => random(*bytes, *seed),
            Self::Numbers { count, seed } => numbers(*count, *seed),
        }
    }
}

/// Words of a language that there is not: syllables, the frequent ones short.
fn words(random: &mut Random, count: usize) -> Vec<Vec<u8>> {
    const ONSET: [&str; 16] = [
        "b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "st", "tr", "w",
    ];
    const VOWEL: [&str; 8] = ["a", "e", "i", "o", "u", "ea", "ou", "e"];
    const CODA: [&str; 8] = ["", "", "n", "r", "s", "t", "l", "nd"];
    let pick = |random: &mut Random, from: &[&'static str]| {
        from[random.below(from.len() as u64) as usize].as_bytes()
    };
    (0..count)
        .map(|rank| {
            let mut word = Vec::new();
            for _ in 0..1 + (rank > 30) as usize + (random.below(3) as usize * rank).div_ceil(count)
            {
                word.extend_from_slice(pick(random, &ONSET));
                word.extend_from_slice(pick(random, &VOWEL));
                word.extend_from_slice(pick(random, &CODA));
            }
            word
        })
        .collect()
}

/// [`Content::Text`].
pub fn text(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = words(&mut random, 6000);
    // Word of rank r with a frequency of 1/r: sums of reciprocals, in 2^-32.
    let mut sums = Vec::with_capacity(words.len());
    let mut sum = 0u64;
    for rank in 1..=words.len() as u64 {
        sum += (1 << 32) / rank;
        sums.push(sum);
    }
    let mut out = Vec::with_capacity(size + 200);
    let mut column = 0;
    while out.len() < size {
        let length = 4 + random.below(14);
        for nth in 0..length {
            let at = random.below(sum);
            let word = &words[sums.partition_point(|s| *s <= at)];
            let start = out.len();
            out.extend_from_slice(word);
            if nth == 0 {
                out[start].make_ascii_uppercase();
            }
            if nth + 1 == length {
                out.push(b'.');
            } else if random.below(9) == 0 {
                out.push(b',');
            }
            column += out.len() - start + 1;
            if column > 76 {
                out.push(b'\n');
                column = 0;
            } else {
                out.push(b' ');
            }
        }
    }
    out.push(b'\n');
    out
}

/// [`Content::Random`].
fn random(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        out.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    out.truncate(size);
    out
}

/// [`Content::Numbers`].
fn numbers(count: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut out = String::new();
    for _ in 0..count {
        let shift = random.below(60);
        out.push_str(&(random.next_u64() as i64 >> shift).to_string());
        out.push('\n');
    }
    out.into_bytes()
}
