//! Vectors without a model: hashed words, pairs of words and letter triples. Texts that share words are near to each
//! other, others are not; the same text has the same vector on every machine and in every version.

use std::collections::BTreeMap;

/// As `bge-base`, the default model, has.
pub(super) const DIMENSIONS: usize = 768;

const WORD: f32 = 1.0;
/// Words that say little: those of one or two letters, and these.
const FILLER: f32 = 0.1;
const FILLERS: [&str; 16] = [
    "and", "are", "but", "can", "for", "from", "has", "not", "that", "the", "this", "was", "were", "will", "with",
    "you",
];
const PAIR: f32 = 0.2;
/// Lets "invoice" be near "invoices".
const TRIPLE: f32 = 0.3;

/// A vector of length one.
pub(super) fn embed(text: &str) -> Vec<f32> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    // Ordered, so that sums of floats come out the same everywhere.
    let mut features: BTreeMap<(u8, String), (f32, u32)> = BTreeMap::new();
    let mut add = |kind: u8, feature: String, weight: f32| {
        features.entry((kind, feature)).or_insert((weight, 0)).1 += 1;
    };
    for word in &words {
        let filler = word.chars().count() <= 2 || FILLERS.contains(word);
        add(b'w', (*word).to_owned(), if filler { FILLER } else { WORD });
        if !filler {
            let letters: Vec<char> = format!("^{word}$").chars().collect();
            letters.windows(3).for_each(|triple| add(b't', String::from_iter(triple), TRIPLE));
        }
    }
    words.windows(2).for_each(|pair| add(b'p', pair.join(" "), PAIR));
    if words.is_empty() {
        // "!?" for instance: still a vector, and always the same.
        add(b'r', lower, WORD);
    }
    let mut vector = vec![0f32; DIMENSIONS];
    for ((kind, feature), (weight, count)) in features {
        let hash = fnv1a(kind, &feature);
        // The sign is hashed too, so that collisions cancel out instead of adding up.
        let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
        // A word that is repeated a hundred times is not a hundred times as important.
        vector[(hash % DIMENSIONS as u64) as usize] += sign * weight * (count as f32).sqrt();
    }
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    if length == 0.0 {
        // Everything cancelled out: next to impossible, but it must not become a division by zero.
        vector[0] = 1.0;
        return vector;
    }
    vector.iter_mut().for_each(|number| *number /= length);
    vector
}

/// The standard library's hasher may change with its version.
fn fnv1a(kind: u8, text: &str) -> u64 {
    std::iter::once(kind)
        .chain(text.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn likeness(a: &str, b: &str) -> f32 {
        embed(a).iter().zip(embed(b)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn texts_about_the_same_are_nearer_than_others() {
        let cat = "The cat sat on the mat";
        let near = likeness(cat, "A cat is sitting on a mat");
        let far = likeness(cat, "Quarterly revenue grew by ten percent");
        assert!(near > 0.4 && far < 0.1, "{near} {far}");
        assert!(likeness(cat, "the CAT sat, on the mat!") > 0.999);
        let (a, b) = ("invoice payment overdue", "overdue invoices and payments");
        assert!(likeness(a, b) > 0.4, "{}", likeness(a, b));
    }

    #[test]
    fn every_text_has_a_vector_of_length_one() {
        for text in ["", "!?", "a", "日本語", "x ".repeat(10_000).as_str(), "é"] {
            let vector = embed(text);
            let length: f32 = vector.iter().map(|number| number * number).sum();
            assert!(vector.len() == DIMENSIONS && (length - 1.0).abs() < 1e-4, "{text:?}: {length}");
        }
    }

    #[test]
    fn the_same_text_has_the_same_vector_in_every_version() {
        let vector = embed("Hello, world");
        let first: Vec<_> = vector.iter().enumerate().filter(|(_, n)| **n != 0.0).map(|(i, _)| i).take(4).collect();
        assert_eq!(first, [1, 13, 36, 45]);
    }
}
