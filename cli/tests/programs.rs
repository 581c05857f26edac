//! Unmodified programs do under sevlab what they do natively: output, files and exit status, in every mode.
//!
//! Each test is one program. Tiny inputs run in all sixteen combinations of SEV mode, translator and cache mode; large
//! ones with the translator and the page cache only, where they take seconds. A program that is not installed is
//! skipped, with its name on stderr.

mod common;

use common::compare::Case;
use common::{Mode, all_modes, cc1, compile_c, installed, numbers, text};

/// The modes for inputs of some megabytes.
const LARGE: [Mode; 2] = [
    Mode::new("off", true, "page"),
    Mode::new("snp", true, "page"),
];

/// Modes for programs that start slowly: every SEV mode, every engine and both cache modes, but not their product.
const SOME: [Mode; 6] = [
    Mode::new("off", true, "page"),
    Mode::new("off", false, "page"),
    Mode::new("sev", true, "page"),
    Mode::new("es", false, "page"),
    Mode::new("snp", true, "page"),
    Mode::new("snp", true, "none"),
];

/// Every SEV mode with the translator and the page cache.
const TRANSLATED: [Mode; 4] = [
    Mode::new("off", true, "page"),
    Mode::new("sev", true, "page"),
    Mode::new("es", true, "page"),
    Mode::new("snp", true, "page"),
];

/// Runs `case` in `modes` if the program is installed.
fn check(program: &str, modes: &[Mode], case: impl Fn(Case) -> Case) {
    if let Some(path) = installed(program) {
        case(Case::new(path, &[])).check(modes);
    }
}

fn with(case: Case, args: &[&str]) -> Case {
    Case {
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        ..case
    }
}

#[test]
fn true_and_false() {
    check("true", &all_modes(), |c| c);
    check("false", &all_modes(), |c| c);
}

#[test]
fn echo() {
    check("echo", &all_modes(), |c| {
        with(c, &["-e", "a\\tb", "two  words", "ünïcode", "", "--"])
    });
}

#[test]
fn ls() {
    let folder = |c: Case| {
        c.file("a", "1")
            .file("b.txt", text(1, 5000))
            .file("sub/c", "x")
            .file(".hidden", "")
    };
    check("ls", &all_modes(), |c| {
        with(folder(c), &["-l", "a", "b.txt", "sub"])
    });
    check("ls", &TRANSLATED, |c| with(folder(c), &["-1aFR"]));
    check("ls", &TRANSLATED, |c| {
        with(folder(c), &["-l", "missing", "a"])
    });
}

#[test]
fn cat() {
    check("cat", &all_modes(), |c| {
        with(c, &["-n", "a", "-"])
            .file("a", text(2, 3000))
            .stdin("from stdin\n")
    });
    check("cat", &LARGE, |c| {
        with(c, &["big", "big"]).file("big", text(3, 5 << 20))
    });
    check("cat", &TRANSLATED, |c| with(c, &["nothing-here"]));
}

#[test]
fn sort_numbers() {
    check("sort", &all_modes(), |c| {
        with(c, &["-n"]).stdin(numbers(4, 1000))
    });
    check("sort", &TRANSLATED, |c| {
        with(c, &["-n", "-o", "out", "in"]).file("in", numbers(5, 50_000))
    });
    check("sort", &LARGE[1..], |c| {
        with(c, &["-n", "in"]).file("in", numbers(6, 1_000_000))
    });
}

#[test]
fn sort_words() {
    check("sort", &TRANSLATED, |c| {
        with(c, &["-r", "-k2,2", "-u"]).stdin(text(7, 200_000))
    });
}

#[test]
fn checksums() {
    for program in ["sha256sum", "md5sum", "cksum"] {
        check(program, &all_modes(), |c| {
            with(c, &["a", "b"])
                .file("a", text(8, 20_000))
                .file("b", "")
        });
        check(program, &LARGE, |c| {
            with(c, &["big"]).file("big", text(9, 50 << 20))
        });
    }
    let list = "d41d8cd98f00b204e9800998ecf8427e  empty\n00000000000000000000000000000000  empty\n";
    check("md5sum", &TRANSLATED, |c| {
        with(c, &["-c", "list"])
            .file("empty", "")
            .file("list", list)
    });
}

/// Compresses with one program and decompresses what the native one made of the same input.
fn compressor(program: &str, suffix: &str, small: &[&str], large: &[&str], modes: &[Mode]) {
    let Some(path) = installed(program) else {
        return;
    };
    let packed = |data: &[u8]| {
        let mut command = std::process::Command::new(&path);
        let out = common::run_for(command.args(["-c"]), data, common::TIMEOUT);
        assert!(out.status.success(), "{program}: {}", out.stderr_text());
        out.stdout
    };
    let tiny = text(10, 30_000);
    check(program, modes, |c| {
        with(c, &[small, &["-k", "in"]].concat()).file("in", tiny.clone())
    });
    check(program, modes, |c| with(c, &["-dc"]).stdin(packed(&tiny)));
    let name = format!("in{suffix}");
    check(program, &TRANSLATED, |c| {
        with(c, &["-d", &name]).file(&name, packed(&tiny))
    });
    let mut broken = packed(&tiny);
    let middle = broken.len() / 2;
    broken[middle] ^= 0x10;
    check(program, &TRANSLATED, |c| {
        with(c, &["-t"]).stdin(broken.clone())
    });
    let big = text(11, 10 << 20);
    check(program, &LARGE, |c| {
        with(c, &[large, &["-k", "in"]].concat()).file("in", big.clone())
    });
    check(program, &LARGE, |c| {
        with(c, &["-d", &name]).file(&name, packed(&big))
    });
}

#[test]
fn gzip() {
    compressor("gzip", ".gz", &["-n6"], &["-n9"], &all_modes());
}

#[test]
fn bzip2() {
    compressor("bzip2", ".bz2", &["-1"], &["-9"], &SOME);
}

#[test]
fn xz() {
    compressor("xz", ".xz", &["-0", "-T1"], &["-6", "-T1"], &SOME);
}

#[test]
fn grep_over_a_tree() {
    let tree = |c: Case, n: usize, size: usize| {
        (0..n).fold(c, |c, i| {
            c.file(
                &format!("t/{}/{}/f{i}", i % 5, i % 7),
                text(100 + i as u64, size),
            )
        })
    };
    check("grep", &all_modes(), |c| {
        with(
            tree(c, 6, 2000),
            &["-c", "the\\|ab", "t/0/0/f0", "t/1/1/f1"],
        )
    });
    check("grep", &LARGE, |c| {
        with(tree(c, 200, 20_000), &["-rcE", "(a|b)[c-f]{2}", "t"])
    });
    check("grep", &TRANSLATED, |c| {
        with(c, &["-nP", "(\\w)\\1"]).stdin(text(12, 50_000))
    });
    check("grep", &TRANSLATED, |c| {
        with(c, &["-q", "nothing like this"]).stdin(text(12, 50_000))
    });
}

#[test]
fn sed() {
    let script = "s/\\([a-m]*\\)\\([n-z]*\\)/[\\2-\\1]/g; 3d; /ab/y/abc/xyz/; $a end";
    check("sed", &all_modes(), |c| {
        with(c, &[script]).stdin(text(13, 3000))
    });
    check("sed", &TRANSLATED, |c| {
        with(c, &["-n", "-E", "/^[a-f]+ /{s//<&>/;p}"]).stdin(text(14, 500_000))
    });
    check("sed", &TRANSLATED, |c| {
        with(c, &["-i", "s/a/A/g", "in"]).file("in", text(15, 20_000))
    });
}

#[test]
fn awk() {
    let script = "{ n += NF; for (i = 1; i <= NF; i++) c[$i]++ } \
                  END { for (w in c) if (c[w] > m) m = c[w]; printf \"%d %d %.6f %s\\n\", NR, n, sin(n) / m, length(c) }";
    check("awk", &all_modes(), |c| {
        with(c, &[script]).stdin(text(16, 5000))
    });
    check("awk", &LARGE, |c| {
        with(c, &[script]).stdin(text(17, 3 << 20))
    });
}

#[test]
fn perl() {
    let script = r#"
        use strict; use warnings; use List::Util qw(sum max); use Digest::MD5 qw(md5_hex);
        my %count; my $n = 0;
        while (my $line = <STDIN>) { $n++; $count{$_}++ for $line =~ /(\w+)/g; }
        my @top = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 4];
        printf "%d lines, %d words, most %d\n", $n, sum(values %count), max(values %count);
        print join(",", map { "$_=$count{$_}" } @top), "\n";
        my $text = join " ", map { sprintf "%s:%03d", reverse($_), $count{$_} } sort keys %count;
        $text =~ s/([aeiou])(\d*)/uc($1) . length($2)/ge;
        print md5_hex($text), "\n";
        my @m = map { my $i = $_; [map { $i ^ $_ } 0 .. 30] } 0 .. 30;
        my $t = 0; for my $i (0 .. 30) { for my $j (0 .. 30) { $t += $m[$i][$j] * sqrt($j) } } printf "%.9f\n", $t;
        eval { die { code => 5 } }; print "caught $@->{code}\n"; exit 5;
    "#;
    check("perl", &SOME, |c| {
        with(c, &["-e", script]).stdin(text(18, 20_000))
    });
    check("perl", &LARGE, |c| {
        with(c, &["-e", script]).stdin(text(19, 2 << 20))
    });
}

#[test]
fn python3() {
    let script = include_str!("data/report.py");
    let run = |c: Case, size: &str| {
        with(c, &["-S", "job.py", size])
            .file("job.py", script)
            .stdin(text(20, 20_000))
    };
    check("python3", &SOME, |c| run(c, "10"));
    check("python3", &LARGE, |c| run(c, "400"));
}

/// A preprocessed C file of that many functions, about seven lines each.
fn unit(functions: usize) -> String {
    let mut c = String::from("typedef unsigned long u64;\nextern int printf(const char *, ...);\n");
    c.push_str("struct node { struct node *next; u64 key; double weight; };\n");
    for i in 0..functions {
        c.push_str(&match i % 3 {
            0 => format!(
                "static u64 f{i}(u64 a, u64 b) {{\n  u64 s = {i};\n  for (u64 i = 0; i < a; i++) {{\n    s = s * 31 + (i ^ b);\n    \
                 if (s % 7 == {}) s += a << 3; else s -= b;\n  }}\n  return s;\n}}\n",
                i % 7
            ),
            1 => format!(
                "static u64 f{i}(u64 a, u64 b) {{\n  struct node n[4] = {{{{0}}}};\n  for (int i = 0; i < 4; i++) {{\n    n[i].key = a + i;\n    \
                 n[i].weight = b * 0.{i};\n    n[i].next = &n[(i + 1) & 3];\n  }}\n  return n[a & 3].next->key + (u64)n[b & 3].weight;\n}}\n"
            ),
            _ => format!(
                "static u64 f{i}(u64 a, u64 b) {{\n  switch (a % 5) {{\n  case 0: return b + {i};\n  case 1: return b * {i};\n  \
                 case 2: return f{}(b, a);\n  case 3: return a | b << 4;\n  default: return ~a;\n  }}\n}}\n",
                i - 1
            ),
        });
    }
    c.push_str("int main(void) {\n  u64 s = 0;\n");
    for i in 0..functions {
        c.push_str(&format!("  s += f{i}(s & 15, {i});\n"));
    }
    c.push_str("  printf(\"%lu\\n\", s);\n  return 0;\n}\n");
    c
}

#[test]
fn gcc_cc1() {
    let Some(path) = cc1() else { return };
    let case = |level, functions| {
        Case::new(
            &path,
            &["-quiet", level, "-fpreprocessed", "unit.i", "-o", "unit.s"],
        )
        .file("unit.i", unit(functions))
    };
    case("-O1", 6).check(&SOME);
    let large = case("-O1", 540);
    assert!(
        unit(540).lines().count() >= 5000,
        "{} lines",
        unit(540).lines().count()
    );
    large.check(&LARGE);
    Case::new(&path, &["-quiet", "unit.i"])
        .file("unit.i", "int f( { return; }\n")
        .check(&LARGE);
}

#[test]
fn shell_without_children() {
    let script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); case $i in *7) echo $i;; esac; done; cd /; pwd; exit 9";
    check("dash", &SOME, |c| with(c, &["-c", script]));
    check("bash", &SOME, |c| with(c, &["-c", script]));
}

/// What a program is started with, and the three ways to link one.
const STARTED: &str = r#"
#include <elf.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
extern char **environ;
static __thread int tls = 42;
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) printf("%d %zu %s\n", i, strlen(argv[i]), i ? argv[i] : "program");
    for (char **e = environ; *e; e++) if (!strncmp(*e, "SEVLAB_TEST", 11)) puts(*e);
    printf("page %lu, clock ticks %lu, secure %lu, uid %d\n", getauxval(AT_PAGESZ), getauxval(AT_CLKTCK),
           getauxval(AT_SECURE), getauxval(AT_UID) == (unsigned long)getuid());
    printf("random %d, phnum %d, tls %d, aligned %d\n", getauxval(AT_RANDOM) != 0, getauxval(AT_PHNUM) > 0, tls++,
           ((unsigned long)__builtin_frame_address(0) & 15) == 0);
    return argc;
}
"#;

#[test]
fn static_static_pie_and_dynamic() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, flags) in [
        ("dynamic", &["-O1"][..]),
        ("dynamic-no-pie", &["-O1", "-no-pie"]),
        ("static", &["-O1", "-static", "-no-pie"]),
        ("static-pie", &["-O1", "-static-pie"]),
    ] {
        if let Some(program) = compile_c(STARTED, folder.path(), name, flags) {
            Case::new(program, &["one", "", "two words", "--stats"]).check(&all_modes());
        }
    }
}

#[test]
fn kernels() {
    for (name, args) in [("chase", ["2", "30000"]), ("stencil", ["24", "4"])] {
        Case::new(common::workload(name), &args).check(&all_modes());
    }
}

/// With few resident pages, encryption goes on all the time; the result is the same.
#[test]
fn few_resident_pages() {
    for program in ["sort", "sha256sum"] {
        check(program, &TRANSLATED[1..], |c| {
            with(c.option("--resident=96"), &["in"]).file("in", text(21, 200_000))
        });
    }
}

/// The other ciphers, and the translator with every optimisation off.
#[test]
fn ciphers_and_translator_options() {
    let snp = [
        Mode::new("snp", true, "page"),
        Mode::new("snp", true, "none"),
    ];
    for cipher in [
        "--cipher=aes128-xe",
        "--cipher=aes128-xex",
        "--cipher=aes256-xts",
    ] {
        check("sort", &snp, |c| {
            with(c.option(cipher), &["-n"]).stdin(numbers(22, 500))
        });
    }
    for option in [
        "all=off",
        "threshold=1",
        "vectors=off",
        "regions=off",
        "chaining=off",
        "opt_level=none",
        "background=off",
    ] {
        check("sort", &snp[..1], |c| {
            with(c.option("--jit-opt").option(option), &["-n"]).stdin(numbers(23, 500))
        });
        check("awk", &snp[..1], |c| {
            let script = "{ s += $1 * 1.5 } END { print s, sqrt(s * s) }";
            with(c.option("--jit-opt").option(option), &[script]).stdin(numbers(24, 500))
        });
    }
}
