//! One stack frame for all regions.
//!
//! The problem: regions go to each other by tail calls, and to Cranelift each is a function. So each way from region to
//! region takes a frame down and builds another: registers that the convention preserves are restored and saved again, though
//! nobody between the dispatcher and the next exit wants them.
//!
//! The approach: whoever enters translated code (`sevlab_enter`) saves the host's registers and makes one frame that is large
//! enough for any region. Regions are entered behind their prologue; the epilogue before a tail call is taken out. A return
//! keeps its epilogue, which takes the one frame down: what it restores from there is worth nothing, and
//! `sevlab_enter` does not rely on it.
//!
//! Invariants:
//! 1. Only code whose prologue and epilogues are, byte for byte, the ones expected is changed; other code is refused.
//! 2. A region's frame is no larger than [`BYTES`].

use cranelift_codegen::CompiledCode;

/// Bytes of the frame: far more than a region spills. Not so many that a region could reach past the guard page of a stack.
pub(crate) const BYTES: u32 = 4096;

/// A saved register's store, `mov [rsp+disp], reg`: its length and displacement.
fn save_at(code: &[u8]) -> Option<(usize, u32)> {
    let [rex @ (0x48 | 0x4c), 0x89, modrm, 0x24, rest @ ..] = code else {
        return None;
    };
    // RBX, R12, R13, R14: the preserved ones that are not pinned; the base is a SIB byte that names RSP.
    let reg = modrm >> 3 & 7 | (rex & 4) << 1;
    if modrm & 7 != 4 || !matches!(reg, 3 | 12 | 13 | 14) {
        return None;
    }
    match (modrm >> 6, rest) {
        (0, _) => Some((4, 0)),
        (1, [d, ..]) if *d < 0x80 => Some((5, u32::from(*d))),
        (2, [a, b, c, d, ..]) => Some((8, u32::from_le_bytes([*a, *b, *c, *d]))),
        _ => None,
    }
}

/// The length of the prologue of a function with a frame of `bytes` bytes below the saved frame pointer, and the epilogue
/// that belongs to it.
fn prologue(code: &[u8], bytes: u32) -> Option<(usize, Vec<u8>)> {
    let body = code.strip_prefix(&[0x55, 0x48, 0x89, 0xe5])?;
    let sub = match body {
        [0x48, 0x83, 0xec, n, ..] if u32::from(*n) == bytes => 4,
        [0x48, 0x81, 0xec, a, b, c, d, ..] if u32::from_le_bytes([*a, *b, *c, *d]) == bytes => 7,
        _ if bytes == 0 => 0,
        _ => return None,
    };
    let mut at = sub;
    let mut end = None;
    let mut epilogue = Vec::new();
    while let Some((length, disp)) = save_at(&body[at..])
        && end.is_none_or(|e| e == disp)
    {
        let mut restore = body[at..at + length].to_vec();
        restore[1] = 0x8b;
        epilogue.extend(restore);
        at += length;
        end = Some(disp + 8);
    }
    // The saved registers are the top of the frame.
    if end.is_some_and(|e| e.next_multiple_of(16) != bytes) {
        return None;
    }
    if sub != 0 {
        let mut add = body[..sub].to_vec();
        add[2] = 0xc4;
        epilogue.extend(add);
    }
    epilogue.extend([0x48, 0x89, 0xec, 0x5d]);
    Some((4 + at, epilogue))
}

/// The code of a region or stub, changed to run in the one frame, and the offset at which it is entered. None if it is not
/// as expected.
pub(crate) fn share(compiled: &CompiledCode) -> Option<(Vec<u8>, usize)> {
    let mut code = compiled.code_buffer().to_vec();
    let bytes = compiled.buffer.frame_layout()?.frame_to_fp_offset;
    if bytes > BYTES {
        return None;
    }
    let (entry, epilogue) = prologue(&code, bytes)?;
    for site in compiled.buffer.call_sites() {
        let end = site.ret_addr as usize;
        // `jmp reg`; calls of helpers stay as they are.
        let jump = match code.get(..end)? {
            [.., 0x41, 0xff, 0xe0..=0xe7] => 3,
            [.., 0xff, 0xe0..=0xe7] => 2,
            _ => continue,
        };
        let from = end.checked_sub(jump + epilogue.len())?;
        if code[from..end - jump] != epilogue {
            return None;
        }
        code.copy_within(end - jump..end, from);
        code[from + jump..end].fill(0xcc);
    }
    Some((code, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prologue_is_known_by_its_bytes() {
        // push rbp; mov rbp, rsp; sub rsp, 0x20; mov [rsp+0x10], rbx; mov [rsp+0x18], r12; mov rax, r15
        let code = [
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x89, 0x5c, 0x24, 0x10, 0x4c,
            0x89, 0x64, 0x24, 0x18, 0x4c, 0x89, 0xf8,
        ];
        let (length, epilogue) = prologue(&code, 0x20).expect("as Cranelift makes it");
        assert_eq!(length, 18);
        assert_eq!(
            epilogue,
            [
                0x48, 0x8b, 0x5c, 0x24, 0x10, 0x4c, 0x8b, 0x64, 0x24, 0x18, 0x48, 0x83, 0xc4, 0x20,
                0x48, 0x89, 0xec, 0x5d
            ]
        );
        assert_eq!(prologue(&code, 0x30), None);
        // A register is saved where none of the frame's top is.
        let mut other = code;
        other[7] = 0x40;
        assert_eq!(prologue(&other, 0x40), None);
        assert_eq!(
            prologue(&[0x55, 0x48, 0x89, 0xe5, 0xc3], 0).map(|p| p.0),
            Some(4)
        );
    }
}
