//! The keys there are: their types, units and ranges. `tests.rs` holds the table against [`Model`]'s own fields.
//!
//! [`Model`]: sevlab_memctl::model::Model

/// What a key's value is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// Bytes, or text such as "32KiB".
    Size { most: u64 },
    /// A whole number.
    Count {
        least: u32,
        most: u32,
        /// What is counted.
        unit: &'static str,
    },
    /// Nanoseconds, with a fraction or not.
    Ns { most: f64 },
    /// true or false.
    Switch,
    /// One of these names.
    One(&'static [&'static str]),
}

/// A key or a table of keys.
#[derive(Debug)]
pub(super) enum Node {
    Leaf {
        kind: Kind,
        /// Has no default.
        needed: bool,
    },
    Table {
        keys: &'static [(&'static str, Node)],
        /// May be absent, which a file or a setting says with "none".
        optional: bool,
    },
}

const fn needed(kind: Kind) -> Node {
    Node::Leaf { kind, needed: true }
}

const fn default(kind: Kind) -> Node {
    Node::Leaf {
        kind,
        needed: false,
    }
}

const fn table(keys: &'static [(&'static str, Node)]) -> Node {
    Node::Table {
        keys,
        optional: false,
    }
}

const fn optional(keys: &'static [(&'static str, Node)]) -> Node {
    Node::Table {
        keys,
        optional: true,
    }
}

const fn count(least: u32, most: u32, unit: &'static str) -> Kind {
    Kind::Count { least, most, unit }
}

const fn cycles() -> Kind {
    count(0, 1_000_000, "cycles")
}

/// Cycles of one instruction. The cost of a turn is summed in 26 bits of a word that is read every 2^14 instructions.
const fn cost() -> Node {
    default(count(0, 4000, "cycles"))
}

/// Cycles of an exit.
const fn exit() -> Node {
    default(count(0, 1_000_000_000, "cycles"))
}

const fn ns() -> Node {
    needed(Kind::Ns { most: 1e6 })
}

const POLICIES: Kind = Kind::One(&["lru", "tree-plru", "nru", "fifo", "random"]);
/// Policies of a first-level TLB: those that a hit does not change.
const STILL: Kind = Kind::One(&["fifo", "random"]);

const MIB: u64 = 1 << 20;
/// Most ways of a cache: the policies' bits of a set are a word.
pub(super) const MOST_WAYS: u32 = 64;

/// Levels that each core has.
static PRIVATE: &[(&str, Node)] = &[
    ("size", needed(Kind::Size { most: 64 * MIB })),
    ("ways", needed(count(1, MOST_WAYS, "ways"))),
    ("policy", default(POLICIES)),
];

static LLC: &[(&str, Node)] = &[
    ("size", needed(Kind::Size { most: 4096 * MIB })),
    ("ways", needed(count(1, MOST_WAYS, "ways"))),
    ("policy", default(POLICIES)),
];

static TLB1: &[(&str, Node)] = &[
    ("entries", needed(count(1, 4096, "entries"))),
    ("ways", needed(count(1, 4096, "ways"))),
    ("policy", needed(STILL)),
];

static TLB2: &[(&str, Node)] = &[
    ("entries", needed(count(1, 1 << 20, "entries"))),
    ("ways", needed(count(1, 4096, "ways"))),
    ("policy", needed(POLICIES)),
];

/// Everything, in the order in which it is shown.
pub(super) static ROOT: &[(&str, Node)] = &[
    ("name", needed(Kind::Text)),
    (
        "llc_inclusion",
        default(Kind::One(&["inclusive", "non-inclusive"])),
    ),
    (
        "core",
        table(&[
            ("model", needed(Kind::One(&["simple", "overlap"]))),
            ("clock_mhz", needed(count(1, 100_000, "MHz"))),
            ("window", default(count(1, 4096, "instructions"))),
            ("mshrs", default(count(1, 256, "misses"))),
        ]),
    ),
    ("l1i", table(PRIVATE)),
    ("l1d", table(PRIVATE)),
    ("l2", optional(PRIVATE)),
    ("llc", table(LLC)),
    (
        "prefetch",
        table(&[
            ("next_line", default(Kind::Switch)),
            ("stride", default(Kind::Switch)),
            ("degree", default(count(1, 64, "lines"))),
        ]),
    ),
    (
        "tlb",
        optional(&[
            ("walk_entries", needed(count(0, 4096, "entries"))),
            ("nested_entries", needed(count(0, 65_536, "entries"))),
            ("l1i", table(TLB1)),
            ("l1d", table(TLB1)),
            ("l2i", optional(TLB2)),
            ("l2", table(TLB2)),
        ]),
    ),
    (
        "dram",
        table(&[
            ("model", needed(Kind::One(&["flat", "banks"]))),
            ("channels", default(count(1, 64, "channels"))),
            ("banks", default(count(1, 1024, "banks"))),
            ("row_bytes", default(Kind::Size { most: MIB })),
            ("line_ns", default(Kind::Ns { most: 1e6 })),
        ]),
    ),
    (
        "latency",
        table(&[
            ("l1d_cycles", needed(cycles())),
            ("l1i_cycles", needed(cycles())),
            ("l2_cycles", needed(cycles())),
            ("llc_cycles", needed(cycles())),
            ("remote_cycles", needed(cycles())),
            ("upgrade_cycles", needed(cycles())),
            ("dram_ns", ns()),
            ("dram_row_ns", ns()),
            ("dram_write_ns", ns()),
            ("aes_ns", ns()),
            ("aes_write_ns", ns()),
            ("aes_line_ns", ns()),
            ("tlb2_cycles", needed(cycles())),
            ("walk_cycles", needed(cycles())),
            ("rmp_cycles", needed(cycles())),
        ]),
    ),
    (
        "cost",
        table(&[
            ("default", cost()),
            ("branch", cost()),
            ("mul", cost()),
            ("div", cost()),
            ("fp", cost()),
            ("fp_div", cost()),
            ("x87", cost()),
            ("vector", cost()),
            ("crypto", cost()),
            ("locked", cost()),
            ("fence", cost()),
            ("rep", cost()),
        ]),
    ),
    (
        "exit",
        table(&[
            ("syscall_cycles", exit()),
            ("fault_cycles", exit()),
            ("vmrun_cycles", exit()),
            ("es_state_cycles", exit()),
            ("ghcb_cycles", exit()),
            ("vc_cycles", exit()),
            ("pvalidate_cycles", exit()),
            ("rmpadjust_cycles", exit()),
            ("rmpupdate_cycles", exit()),
            ("launch_page_ns", default(Kind::Ns { most: 1e12 })),
        ]),
    ),
];

/// The node of that name.
pub(super) fn child(keys: &'static [(&'static str, Node)], name: &str) -> Option<&'static Node> {
    keys.iter().find(|(key, _)| *key == name).map(|(_, n)| n)
}

/// Calls `f` with the path of each key, in order.
pub(super) fn leaves(f: &mut dyn FnMut(&str, &'static Kind, bool)) {
    walk(ROOT, "", f);
}

fn walk(
    keys: &'static [(&'static str, Node)],
    table: &str,
    f: &mut dyn FnMut(&str, &'static Kind, bool),
) {
    for (name, node) in keys {
        let path = join(table, name);
        match node {
            Node::Leaf { kind, needed } => f(&path, kind, *needed),
            Node::Table { keys, .. } => walk(keys, &path, f),
        }
    }
}

/// `table.name`.
pub(super) fn join(table: &str, name: &str) -> String {
    if table.is_empty() {
        name.to_owned()
    } else {
        format!("{table}.{name}")
    }
}

/// What to say of a name that is not in the table.
pub(super) fn unknown(table: &str, keys: &[(&str, Node)], name: &str) -> String {
    let stem = stem(name);
    for (key, node) in keys {
        if let Node::Leaf { kind, .. } = node
            && self::stem(key) == stem
        {
            let path = join(table, key);
            return format!("no such key; {path} is {}", allowed(kind));
        }
    }
    let near = keys
        .iter()
        .map(|(key, _)| (distance(key, name), *key))
        .min();
    if let Some((1..=2, key)) = near {
        return format!("no such key; is {} meant?", join(table, key));
    }
    let mut elsewhere = Vec::new();
    leaves(&mut |path, _, _| {
        let last = path.rsplit('.').next().unwrap_or(path);
        if last == name {
            elsewhere.push(path.to_owned());
        }
    });
    if !elsewhere.is_empty() {
        return format!("no such key here; there is {}", elsewhere.join(", "));
    }
    let names: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
    let place = if table.is_empty() {
        "at the top level".to_owned()
    } else {
        format!("in [{table}]")
    };
    format!("no such key; {place} there is {}", names.join(", "))
}

/// A name without its unit.
fn stem(name: &str) -> &str {
    const UNITS: &[&str] = &[
        "_cycles", "_ns", "_us", "_ms", "_ps", "_mhz", "_ghz", "_hz", "_bytes", "_kib", "_mib",
        "_kb", "_mb",
    ];
    UNITS
        .iter()
        .find_map(|unit| name.strip_suffix(unit))
        .unwrap_or(name)
}

/// Edit distance, at most 3.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j].min(row[j + 1]) + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()].min(3)
}

/// What a key's value may be.
pub(super) fn allowed(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Size { most } => format!(
            "a size: a number of bytes, or text such as \"32KiB\" or \"1MiB\"; at most {}",
            size(*most)
        ),
        Kind::Count { least, most, unit } => {
            format!("a whole number of {unit}, {least} to {most}")
        }
        Kind::Ns { most } => format!("a number of nanoseconds, 0 to {most}"),
        Kind::Switch => "true or false".to_owned(),
        Kind::One(names) => format!("one of {}", names.join(", ")),
    }
}

/// A size as it is written best.
pub(super) fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}
