//! Copies of blocks ([`crate::direct`]) as records hold them.
//!
//! Their numbers and what they read by its address differ from run to run. So the code of a record is what it is where all of these
//! begin at 0, and says where they are ([`Fix`]).
//!
//! Invariant: what [`Stored::read`] gives has no offset that is not in its code, and its guest bytes are those of its spans. What else is
//! wrong with it can't be seen, as with a region's code.

use super::file::{Span, begin_and_fill};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Declares what is read and written as it is.
macro_rules! packed {
    ($($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident: $of:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        $vis struct $name { $(pub(crate) $field: $of,)* }
    )*};
}

packed! {
    struct Head {
        view: U64,
        spans: U32,
        guest: U32,
        code: U32,
        exits: U32,
        steps: U32,
        sites: U32,
        fixes: U32,
        cold: U32,
    }

    /// A jump to where the guest goes on: see [`crate::direct::Exit`].
    pub(crate) struct Exit {
        to: U64,
        jump: U32,
        stub: U32,
    }

    /// An instruction for the interpreter, by its address: see [`crate::direct::Direct::steps`].
    pub(crate) struct Step {
        rip: U64,
        resume: U32,
        from: U32,
    }

    /// See [`crate::direct::Direct::sites`].
    pub(crate) struct Site {
        begins: U32,
        out: U32,
    }

    /// 32 bits of the code that are a distance from something ([`crate::direct::Fix`]).
    pub(crate) struct Fix {
        at: U32,
        from: u8,
    }
}

/// One copy as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored<'a> {
    /// Bytes of the view that its accesses are checked against.
    pub view: u64,
    /// It is of a block that has not run often, alone: see [`JitOptions::cold`](crate::JitOptions::cold).
    pub cold: bool,
    /// The blocks that it is of, the first one first.
    pub spans: &'a [Span],
    /// Their bytes, one after the other.
    pub guest: &'a [u8],
    pub code: &'a [u8],
    pub exits: &'a [Exit],
    pub steps: &'a [Step],
    pub sites: &'a [Site],
    pub fixes: &'a [Fix],
}

impl<'a> Stored<'a> {
    /// The record's bytes in a file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let n = |len: usize| U32::new(len as u32);
        let head = Head {
            view: U64::new(self.view),
            spans: n(self.spans.len()),
            guest: n(self.guest.len()),
            code: n(self.code.len()),
            exits: n(self.exits.len()),
            steps: n(self.steps.len()),
            sites: n(self.sites.len()),
            fixes: n(self.fixes.len()),
            cold: U32::new(self.cold.into()),
        };
        [
            head.as_bytes(),
            self.spans.as_bytes(),
            self.guest,
            self.code,
            self.exits.as_bytes(),
            self.steps.as_bytes(),
            self.sites.as_bytes(),
            self.fixes.as_bytes(),
        ]
        .concat()
    }

    /// What a record of the copy at `rip` says; `None` if it can't be one.
    pub(crate) fn read(rip: u64, raw: &'a [u8]) -> Option<Self> {
        let (head, rest) = Head::ref_from_prefix(raw).ok()?;
        let n = |count: U32| count.get() as usize;
        let (spans, rest) = <[Span]>::ref_from_prefix_with_elems(rest, n(head.spans)).ok()?;
        let (guest, rest) = rest.split_at_checked(n(head.guest))?;
        let (code, rest) = rest.split_at_checked(n(head.code))?;
        let (exits, rest) = <[Exit]>::ref_from_prefix_with_elems(rest, n(head.exits)).ok()?;
        let (steps, rest) = <[Step]>::ref_from_prefix_with_elems(rest, n(head.steps)).ok()?;
        let (sites, rest) = <[Site]>::ref_from_prefix_with_elems(rest, n(head.sites)).ok()?;
        let fixes = <[Fix]>::ref_from_bytes_with_elems(rest, n(head.fixes)).ok()?;
        let inside = |at: U32| n(at) < code.len();
        let word = |at: U32| n(at) + 4 <= code.len();
        let good = begin_and_fill(spans, rip, guest)
            && !code.is_empty()
            && exits.iter().all(|e| word(e.jump) && inside(e.stub))
            && steps.iter().all(|s| inside(s.resume) && s.from.get() != 0)
            && sites.is_sorted_by_key(|s| s.begins.get())
            && sites
                .iter()
                .all(|s| inside(s.begins) && (inside(s.out) || s.out.get() == u32::MAX))
            && fixes
                .iter()
                .all(|f| word(f.at) && crate::direct::Fix::of(f.from).is_some());
        good.then_some(Self {
            view: head.view.get(),
            cold: head.cold.get() != 0,
            spans,
            guest,
            code,
            exits,
            steps,
            sites,
            fixes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_written_and_no_wrong_offset() {
        let span = Span {
            rip: U64::new(0x1000),
            bytes: U32::new(3),
        };
        let exit = Exit {
            to: U64::new(0x2000),
            jump: U32::new(4),
            stub: U32::new(7),
        };
        let good = Stored {
            view: 1 << 40,
            cold: true,
            spans: &[span],
            guest: &[1, 2, 3],
            code: &[0xcc; 8],
            exits: &[exit],
            steps: &[Step {
                rip: U64::new(0x1001),
                resume: U32::new(7),
                from: U32::new(2),
            }],
            sites: &[Site {
                begins: U32::new(2),
                out: U32::new(u32::MAX),
            }],
            fixes: &[Fix {
                at: U32::new(4),
                from: 0,
            }],
        };
        let reads = |s: &Stored<'_>| Stored::read(0x1000, &s.encode()).is_some();
        assert_eq!(Stored::read(0x1000, &good.encode()), Some(good));
        assert_eq!(Stored::read(0x1001, &good.encode()), None);
        let whole = good.encode();
        assert!((0..whole.len()).all(|n| Stored::read(0x1000, &whole[..n]).is_none()));
        let exits = [Exit {
            jump: U32::new(5),
            ..exit
        }];
        assert!(!reads(&Stored {
            exits: &exits,
            ..good
        }));
        let exits = [Exit {
            stub: U32::new(8),
            ..exit
        }];
        assert!(!reads(&Stored {
            exits: &exits,
            ..good
        }));
        let fix = |at: u32, from| Fix {
            at: U32::new(at),
            from,
        };
        for wrong in [fix(5, 0), fix(u32::MAX, 0), fix(0, 9)] {
            assert!(!reads(&Stored {
                fixes: &[wrong],
                ..good
            }));
        }
        let site = |begins: u32, out: u32| Site {
            begins: U32::new(begins),
            out: U32::new(out),
        };
        for wrong in [site(8, 0), site(0, 8)] {
            assert!(!reads(&Stored {
                sites: &[wrong],
                ..good
            }));
        }
        assert!(!reads(&Stored {
            sites: &[site(3, 0), site(2, 0)],
            ..good
        }));
        assert!(!reads(&Stored {
            guest: &[1, 2],
            ..good
        }));
    }
}
