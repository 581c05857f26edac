//! The stack a program starts with: argument strings, environment, auxiliary vector.

/// Auxiliary vector keys (linux/auxvec.h).
pub mod at {
    #![allow(missing_docs)] // named by the ABI
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
    pub const MINSIGSTKSZ: u64 = 51;
}

/// What goes onto the stack.
pub struct Start<'a> {
    /// Arguments.
    pub argv: &'a [Vec<u8>],
    /// Environment.
    pub envp: &'a [Vec<u8>],
    /// End of the stack.
    pub end: u64,
    /// The program's path (`AT_EXECFN`).
    pub exec_fn: &'a [u8],
    /// Sixteen random bytes (`AT_RANDOM`).
    pub random: [u8; 16],
    /// Auxiliary values whose value is no pointer into the stack.
    pub auxv: &'a [(u64, u64)],
}

/// The laid-out stack.
pub struct Stack {
    /// RSP at the entry point: the address of `argc`, 16-byte aligned.
    pub rsp: u64,
    /// What lies from `rsp` up to the end of the stack.
    pub bytes: Vec<u8>,
    /// The auxiliary vector as it lies in memory.
    pub auxv: Vec<u8>,
}

/// Lays out the stack.
#[must_use]
pub fn build(s: &Start<'_>) -> Stack {
    let mut strings = Strings {
        top: s.end - 8,
        data: vec![0; 8],
    };
    let exec_fn = strings.push(s.exec_fn);
    let envp: Vec<u64> = s.envp.iter().rev().map(|e| strings.push(e)).collect();
    let argv: Vec<u64> = s.argv.iter().rev().map(|a| strings.push(a)).collect();
    let platform = strings.push(b"x86_64");
    let random = strings.push_raw(&s.random);

    let mut auxv = Vec::new();
    let pointers = [
        (at::EXECFN, exec_fn),
        (at::PLATFORM, platform),
        (at::RANDOM, random),
    ];
    for (key, value) in s.auxv.iter().chain(&pointers).chain(&[(at::NULL, 0)]) {
        auxv.extend(key.to_le_bytes());
        auxv.extend(value.to_le_bytes());
    }
    let mut words: Vec<u64> = vec![argv.len() as u64];
    words.extend(argv.iter().rev());
    words.push(0);
    words.extend(envp.iter().rev());
    words.push(0);
    let mut low: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    low.extend(&auxv);
    let rsp = (strings.top - low.len() as u64) & !15;
    low.resize((strings.top - rsp) as usize, 0);
    strings.data.reverse();
    low.extend(strings.data);
    Stack {
        rsp,
        bytes: low,
        auxv,
    }
}

/// Strings that grow downwards; `data` is kept in reverse.
struct Strings {
    top: u64,
    data: Vec<u8>,
}

impl Strings {
    fn push(&mut self, s: &[u8]) -> u64 {
        self.data.push(0);
        self.top -= 1;
        self.push_raw(s)
    }
    fn push_raw(&mut self, s: &[u8]) -> u64 {
        self.data.extend(s.iter().rev());
        self.top -= s.len() as u64;
        self.top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::mm::STACK_END;

    #[test]
    fn layout_is_what_a_program_expects() {
        let argv = [b"prog".to_vec(), b"arg".to_vec()];
        let envp = [b"A=1".to_vec()];
        let s = Start {
            end: STACK_END,
            argv: &argv,
            envp: &envp,
            exec_fn: b"/bin/prog",
            random: [7; 16],
            auxv: &[(at::PAGESZ, 4096)],
        };
        let stack = build(&s);
        assert_eq!(stack.rsp % 16, 0);
        assert_eq!(stack.rsp + stack.bytes.len() as u64, STACK_END);
        let word = |i: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(&stack.bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(b)
        };
        let text = |va: u64| {
            let at = (va - stack.rsp) as usize;
            let end = stack.bytes[at..].iter().position(|b| *b == 0).unwrap();
            stack.bytes[at..at + end].to_vec()
        };
        assert_eq!(word(0), 2);
        assert_eq!(text(word(1)), b"prog");
        assert_eq!(text(word(2)), b"arg");
        assert_eq!((word(3), word(5)), (0, 0));
        assert_eq!(text(word(4)), b"A=1");
        assert_eq!((word(6), word(7)), (at::PAGESZ, 4096));
        assert_eq!(
            (word(8), text(word(9))),
            (at::EXECFN, b"/bin/prog".to_vec())
        );
        assert_eq!((word(12), word(14), word(15)), (at::RANDOM, at::NULL, 0));
    }
}
