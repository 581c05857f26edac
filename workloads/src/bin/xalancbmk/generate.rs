//! A document: the data of an auction site, in the manner of XMark.

use std::fmt::Write as _;

use sevlab_workloads::guest::Random;
use sevlab_workloads::inputs;

pub struct Generated {
    pub text: String,
    pub bids: u64,
}

const REGIONS: [&str; 6] = [
    "africa",
    "asia",
    "australia",
    "europe",
    "namerica",
    "samerica",
];

pub fn document(items: usize, seed: u64) -> Generated {
    let mut random = Random::new(seed);
    let text = String::from_utf8_lossy(&inputs::text(items * 320 + 2000, seed)).into_owned();
    let mut words = text.split_whitespace().cycle();
    let (mut out, mut bids) = (String::from("<site><regions>"), 0);
    let people = items / 2 + 1;
    for (r, region) in REGIONS.iter().enumerate() {
        let _ = write!(out, "<{region} name=\"{region}\">");
        let count = items / REGIONS.len() + usize::from(r < items % REGIONS.len());
        for n in 0..count {
            let _ = write!(
                out,
                "<item id=\"{region}{n}\" featured=\"{}\">",
                random.below(2)
            );
            let _ = write!(
                out,
                "<name>{} {}</name>",
                words.next().unwrap_or("a"),
                words.next().unwrap_or("b")
            );
            let kind = ["card", "cash", "cheque"][random.below(3) as usize];
            let _ = write!(
                out,
                "<payment kind=\"{kind}\">{} &amp; more</payment><description>",
                random.below(900)
            );
            for _ in 0..1 + random.below(3) {
                out.push_str("<par>");
                for _ in 0..6 + random.below(16) {
                    let word = words.next().unwrap_or("w");
                    let _ = match random.below(8) {
                        0 => write!(out, "<em>{word}</em>"),
                        _ => write!(out, "{word} "),
                    };
                }
                out.push_str("</par>");
            }
            out.push_str("</description><bids>");
            // An empty element would be written in its short form.
            let count = 1 + random.below(5);
            for _ in 0..count {
                let (person, amount) = (random.below(people as u64), random.below(100_000));
                let _ = write!(
                    out,
                    "<bid person=\"p{person}\"><amount>{amount:05}</amount></bid>"
                );
                bids += 1;
            }
            out.push_str("</bids></item>");
        }
        let _ = match count {
            0 => write!(out, "<none/></{region}>"),
            _ => write!(out, "</{region}>"),
        };
    }
    out.push_str("</regions><people>");
    for n in 0..people {
        let name = words.next().unwrap_or("n");
        let _ = write!(
            out,
            "<person id=\"p{n}\"><name>{name} {}</name>",
            random.below(1000)
        );
        if random.below(3) > 0 {
            let _ = write!(
                out,
                "<email>{}@example.org</email>",
                random.below(1_000_000)
            );
        }
        out.push_str("</person>");
    }
    out.push_str("</people></site>");
    Generated { text: out, bids }
}
