#![allow(unsafe_code)] // the host's own words
//! The short way of [`super::near`] once more, in the host's own words, for code that runs the guest's: what L2 serves, with nothing in
//! the way, is most of what a filter does not pass.
//!
//! It does what `near` does where that ends with a line brought from below, or nothing at all; so it has to be changed with it. It is for
//! LRU in sets of 8 ways at most, below of 16, no next-line prefetcher, and hosts with AVX2, and leaves to `near` and what is behind it whatever else there may be:
//! a line that L1 has, a set with ways that are free, a page whose pair in the filter is not its own yet.
//!
//! Registers, in: RDI is the [`ShortWay`], R10 the virtual address, which has a tag, RDX the system-physical one, ECX whose page it is (0 if it
//! is shared, else its ASID and 1), R11 the stamp, ESI 1 for a store, plus 2 if stores may pass the filter from now on. Out: RAX is the host
//! address, or 0 if nothing was done; RDX is not 0 if [`Hier::finish`] has work to do: the stride prefetcher's, or, RAX being 0, all of it, since
//! neither L1D nor what is below has the line. RDI, R10, R11, R15 and vector registers but XMM0 to XMM3 are left as they are.

use std::arch::naked_asm;
use std::mem::offset_of;

use super::cache;
use super::data::{self, Env, PAGE_LINES_SHIFT};
use super::far::BEYOND;
use super::filter::{FetchFilter, Filter, LineFilter, NO_WRITES, TAG_SHIFT};
use super::l1::{L1, NO_ENTRY};
use super::prefetch::{self, Stream};
use super::{CacheCounters, CountKind, Hier, Inclusion};

/// A first level.
#[repr(C)]
struct First {
    sets: *mut cache::Ways,
    set_mask: u64,
    set_bits: u64,
    /// Filter entries by slot.
    entries: *mut u32,
    filter: *const u64,
    /// Which entries of the filter may have a tag.
    used: *const u64,
    /// By [`CountKind`].
    misses: *mut u64,
}

/// Where the short way finds what it needs of a core's caches: good as long as the core is attached, for whoever holds the controller's lock.
#[repr(C)]
pub struct ShortWay {
    data: First,
    fetch: First,
    /// Host addresses of the fetch filter's lines.
    hosts: *const u64,
    below_sets: *mut cache::Ways,
    below_ranks: *mut cache::Ranks,
    below_mask: u64,
    below_bits: u64,
    below_hits: *mut u64,
    write_backs: *mut u64,
    /// `[cached, who]` by page.
    pages: *const [u64; 2],
    /// Where DRAM is, and the plaintext of what is cached of it.
    raw: *mut u8,
    plain: *mut u8,
    /// Null without a stride prefetcher.
    strides: *mut Stream,
    due: *mut i64,
    /// The core's bit among those that may have a page.
    core: u64,
    /// A clean victim of L1 may go unasked.
    clean_may_go: u64,
    /// A load or a store of which the line filter does not have the line.
    pub data_way: unsafe extern "sysv64" fn(),
    /// The fetch of a line that the fetch filter does not have.
    pub fetch_way: unsafe extern "sysv64" fn(),
}

/// Words, for all words of a register.
#[repr(C, align(16))]
struct Words([u32; 4]);

static NOT_DIRTY: Words = Words([!cache::DIRTY; 4]);
static ONES: Words = Words([0x0101_0101; 4]);

/// Bits of an entry that can't be a tag's ([`super::filter`]).
const _: () = assert!(cache::VALID == 1 && cache::DIRTY == 2 && cache::TAG_SHIFT == 2);
const _: () = assert!(size_of::<cache::Ways>() == 32 && size_of::<cache::Ranks>() == 8);
const _: () = assert!(LineFilter::PAIR_SHIFT == 5 && PAGE_LINES_SHIFT == 6);
const _: () = assert!(size_of::<Stream>() == 32 && data::CORE_BITS == 48);
const _: () = assert!(NO_ENTRY == u32::MAX);
const _: () = assert!(BEYOND == 1 << 63);

/// EAX is the way in the set at R14 of what is below that has XMM2's word; ZF if there is none.
macro_rules! find {
    () => {
        concat!(
            "vmovdqu xmm0, [r14]\n vmovdqu xmm1, [r14 + 16]\n",
            "vpand xmm0, xmm0, [rip + {not_dirty}]\n vpand xmm1, xmm1, [rip + {not_dirty}]\n",
            "vpcmpeqd xmm0, xmm0, xmm2\n vpcmpeqd xmm1, xmm1, xmm2\n",
            "vpackssdw xmm0, xmm0, xmm1\n",
            ".if {ways} == 16\n",
            "vmovdqu xmm1, [r14 + 32]\n vmovdqu xmm3, [r14 + 48]\n",
            "vpand xmm1, xmm1, [rip + {not_dirty}]\n vpand xmm3, xmm3, [rip + {not_dirty}]\n",
            "vpcmpeqd xmm1, xmm1, xmm2\n vpcmpeqd xmm3, xmm3, xmm2\n",
            "vpackssdw xmm1, xmm1, xmm3\n",
            ".else\n",
            "vpxor xmm1, xmm1, xmm1\n",
            ".endif\n",
            "vpacksswb xmm0, xmm0, xmm1\n vpmovmskb eax, xmm0\n bsf eax, eax\n",
        )
    };
}

/// The short way of data (`FETCH` 0) or of instructions (1): for code that keeps to what the module says of registers, on behalf of a core whose
/// `ShortWay` it is, by a thread that holds the controller's lock and has no reference into it.
macro_rules! short_way {
    ($name:ident, $first:ident, $filter:ty, $fetch:literal, $ways:literal) => {
        #[unsafe(naked)]
        unsafe extern "sysv64" fn $name() {
            naked_asm!(
                // R8 is the line. Its page is the domain's, and no other core's.
                "mov r8, rdx", "shr r8, 6",
                "mov rax, rdx", "shr rax, 12", "shl rax, 4", "add rax, [rdi + {pages}]",
                "mov r9d, ecx", "shl r9, 48", "or r9, [rdi + {core}]", "cmp r9, [rax + 8]", "jne 9f",
                // R9 is the host address. The page's pair in the filter is its own.
                "mov r9, [rdi + {raw}]", "test ecx, ecx", "cmovnz r9, [rdi + {plain}]", "add r9, rdx",
                ".if {fetch} == 0",
                "mov rax, r9", "sub rax, r10",
                "mov r14, r10", "shr r14, 10", "and r14d, {pairs}", "shl r14, 3", "add r14, [rdi + {filter}]",
                "cmp rax, [r14 + {addend}]", "jne 9f",
                "mov rax, r10", "and rax, -4096", "cmp rax, [r14 + {owner}]", "jne 9f",
                ".endif",
                // R12 is the line's word, RBP its set in L1, RBX that set's ways: all are taken, and none has the line.
                "mov rcx, [rdi + {set_bits}]", "mov r12, r8", "shr r12, cl", "shl r12d, 2", "or r12d, 1",
                "mov rbp, r8", "and rbp, [rdi + {set_mask}]",
                "mov rbx, rbp", "shl rbx, 5", "add rbx, [rdi + {sets}]",
                "vmovdqu xmm0, [rbx]", "vmovdqu xmm1, [rbx + 16]",
                "vpand xmm2, xmm0, xmm1", "vpslld xmm2, xmm2, 31", "vmovmskps eax, xmm2", "cmp eax, 15", "jne 9f",
                "vmovd xmm2, r12d", "vpshufd xmm2, xmm2, 0",
                "vpand xmm0, xmm0, [rip + {not_dirty}]", "vpand xmm1, xmm1, [rip + {not_dirty}]",
                "vpcmpeqd xmm0, xmm0, xmm2", "vpcmpeqd xmm1, xmm1, xmm2", "vpor xmm0, xmm0, xmm1", "vmovmskps eax, xmm0",
                "test eax, eax", "jnz 9f",
                // What is below has it: R13 is where the rank of its way is.
                "mov rcx, [rdi + {below_bits}]", "mov rax, r8", "shr rax, cl", "shl eax, 2", "or eax, 1",
                "vmovd xmm2, eax", "vpshufd xmm2, xmm2, 0",
                "mov r13, r8", "and r13, [rdi + {below_mask}]",
                "mov r14, r13", "shl r14, {set_shift}", "add r14, [rdi + {below_sets}]",
                find!(),
                ".if {fetch}", "jz 9f", ".else", "jz 10f", ".endif",
                "shl r13, {rank_shift}", "add r13, rax", "add r13, [rdi + {below_ranks}]",
                // The way in L1 used longest ago, the lowest of them: EDX is its slot, RBX where its word is, R14D what that is now.
                "mov rdx, rbp", "shl rdx, 6", "add rdx, [rdi + {filter}]",
                "mov rax, [rdx + {stamp}]", "shl rax, 3",
                "mov rcx, [rdx + {stamp} + 8]", "lea rcx, [rcx * 8 + 1]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 16]", "lea rcx, [rcx * 8 + 2]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 24]", "lea rcx, [rcx * 8 + 3]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 32]", "lea rcx, [rcx * 8 + 4]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 40]", "lea rcx, [rcx * 8 + 5]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 48]", "lea rcx, [rcx * 8 + 6]", "cmp rcx, rax", "cmovl rax, rcx",
                "mov rcx, [rdx + {stamp} + 56]", "lea rcx, [rcx * 8 + 7]", "cmp rcx, rax", "cmovl rax, rcx",
                "and eax, 7",
                "lea edx, [rbp * 8]", "add edx, eax",
                "lea rbx, [rbx + rax * 4]", "mov r14d, [rbx]",
                // Who has to go is below, too. ESI gets 4 if it is dirty, which what is below is then.
                ".if {fetch} == 0",
                "mov rax, [rdi + {filter}]", "movzx eax, byte ptr [rax + rdx + {wrote}]",
                "bt r14d, 1", "adc eax, 0", "neg eax", "sbb eax, eax", "and eax, 4", "or esi, eax", "jnz 2f",
                ".endif",
                "cmp qword ptr [rdi + {clean_may_go}], 0", "jne 3f",
                "2:",
                "mov rcx, [rdi + {set_bits}]", "shr r14d, 2", "shl r14, cl", "or r14, rbp",
                "mov rcx, [rdi + {below_bits}]", "mov rax, r14", "shr rax, cl", "shl eax, 2", "or eax, 1",
                "vmovd xmm2, eax", "vpshufd xmm2, xmm2, 0",
                "and r14, [rdi + {below_mask}]", "shl r14, {set_shift}", "add r14, [rdi + {below_sets}]",
                find!(),
                "jz 9f",
                ".if {fetch} == 0",
                "test esi, 4", "jz 3f",
                "or dword ptr [r14 + rax * 4], 2",
                ".endif",
                "3:",
                // Nothing is in the way any more. What is below was used.
                "movzx ecx, byte ptr [r13]", "vmovd xmm1, ecx", "vpbroadcastb xmm1, xmm1",
                "mov rax, r13", "and rax, -{ways}",
                ".if {ways} == 8", "vmovq xmm0, [rax]", ".else", "vmovdqu xmm0, [rax]", ".endif",
                "vpsubusb xmm1, xmm1, xmm0", "vpminub xmm1, xmm1, [rip + {ones}]", "vpaddb xmm0, xmm0, xmm1",
                ".if {ways} == 8", "vmovq [rax], xmm0", ".else", "vmovdqu [rax], xmm0", ".endif",
                "mov byte ptr [r13], 0",
                // R14 is the number of the virtual line, EAX its entry, which is the slot's now. The entry that was, if it is still.
                "mov rcx, [rdi + {filter}]",
                "mov r14, r10", "shr r14, 6", "mov eax, r14d", "and eax, {entries} - 1",
                "mov rbp, [rdi + {slots}]", "mov r13d, [rbp + rdx * 4]", "mov [rbp + rdx * 4], eax",
                "cmp r13d, -1", "je 4f",
                "movzx ebp, word ptr [rcx + r13 * 8]", "cmp ebp, edx", "jne 4f",
                "mov rbp, r13", "xor rbp, 2", "shl rbp, {tag}", "bts rbp, 63", "mov [rcx + r13 * 8], rbp",
                "4:",
                "mov [rcx + rdx * 8 + {stamp}], r11",
                ".if {fetch} == 0",
                "mov byte ptr [rcx + rdx + {wrote}], 0",
                "mov ebp, esi", "and ebp, 1", "lea r12d, [r12 + rbp * 2]",
                ".endif",
                "mov [rbx], r12d",
                // The filter's entry.
                "mov r13, [rdi + {used}]", "mov ebp, eax", "shr ebp, 6",
                "mov rbx, [r13 + rbp * 8]", "bts rbx, rax", "mov [r13 + rbp * 8], rbx",
                "shl r14, {tag}", "or r14, rdx",
                ".if {fetch} == 0",
                "test esi, 2", "jnz 5f",
                ".endif",
                "or r14, {no_writes}",
                "5:",
                "mov [rcx + rax * 8], r14",
                ".if {fetch}",
                "mov r13, [rdi + {hosts}]", "mov rbp, r9", "and rbp, -64", "mov [r13 + rax * 8], rbp",
                ".endif",
                // What is counted.
                ".if {fetch}",
                "mov ebp, {fetches}",
                ".else",
                "mov ebp, esi", "and ebp, 1",
                "test esi, 4", "jz 6f", "mov r13, [rdi + {write_backs}]", "inc qword ptr [r13]", "6:",
                ".endif",
                "mov r13, [rdi + {misses}]", "inc qword ptr [r13 + rbp * 8]",
                "mov r13, [rdi + {below_hits}]", "inc qword ptr [r13 + rbp * 8]",
                // The stride prefetcher learns of it.
                "xor edx, edx",
                ".if {fetch} == 0",
                "mov r13, [rdi + {strides}]", "test r13, r13", "jz 8f",
                "mov rax, r8", "shr rax, 6", "and r8d, 63",
                "mov ecx, eax", "and ecx, {streams} - 1", "shl ecx, 5", "add r13, rcx",
                "cmp rax, [r13 + {page}]", "jne 7f",
                "mov rcx, r8", "sub rcx, [r13 + {last}]", "jz 8f",
                "mov [r13 + {last}], r8",
                "cmp rcx, [r13 + {stride}]", "mov [r13 + {stride}], rcx", "jne 8f",
                "mov rdx, rcx", "mov rax, [rdi + {due}]", "mov [rax], rcx", "jmp 8f",
                "7:",
                "mov [r13 + {page}], rax", "mov [r13 + {last}], r8", "mov [r13 + {stride}], rdx",
                "8:",
                ".endif",
                "mov rax, r9", "ret",
                "9:",
                "xor eax, eax", "xor edx, edx", "ret",
                ".if {fetch} == 0",
                "10:",
                "mov edx, esi", "and edx, 1", "bts rdx, 63", "mov rax, [rdi + {due}]", "mov [rax], rdx",
                "xor eax, eax", "ret",
                ".endif",
                fetch = const $fetch,
                ways = const $ways,
                set_shift = const ($ways as u32 * 4).trailing_zeros(),
                rank_shift = const ($ways as u32).trailing_zeros(),
                pages = const offset_of!(ShortWay, pages),
                core = const offset_of!(ShortWay, core),
                raw = const offset_of!(ShortWay, raw),
                plain = const offset_of!(ShortWay, plain),
                pairs = const (LineFilter::PAGES - 1) << 2,
                addend = const LineFilter::ADDEND,
                owner = const LineFilter::OWNER,
                filter = const offset_of!(ShortWay, $first.filter),
                set_bits = const offset_of!(ShortWay, $first.set_bits),
                set_mask = const offset_of!(ShortWay, $first.set_mask),
                sets = const offset_of!(ShortWay, $first.sets),
                slots = const offset_of!(ShortWay, $first.entries),
                used = const offset_of!(ShortWay, $first.used),
                misses = const offset_of!(ShortWay, $first.misses),
                below_bits = const offset_of!(ShortWay, below_bits),
                below_mask = const offset_of!(ShortWay, below_mask),
                below_sets = const offset_of!(ShortWay, below_sets),
                below_ranks = const offset_of!(ShortWay, below_ranks),
                below_hits = const offset_of!(ShortWay, below_hits),
                write_backs = const offset_of!(ShortWay, write_backs),
                clean_may_go = const offset_of!(ShortWay, clean_may_go),
                hosts = const offset_of!(ShortWay, hosts),
                strides = const offset_of!(ShortWay, strides),
                due = const offset_of!(ShortWay, due),
                streams = const prefetch::PAGES,
                page = const offset_of!(Stream, page),
                last = const offset_of!(Stream, last),
                stride = const offset_of!(Stream, stride),
                fetches = const CountKind::Fetch as u32,
                stamp = const <$filter>::STAMP,
                wrote = const LineFilter::WROTE,
                entries = const <$filter>::ENTRIES,
                tag = const TAG_SHIFT,
                no_writes = const NO_WRITES,
                not_dirty = sym NOT_DIRTY,
                ones = sym ONES,
            )
        }
    };
}

short_way!(data_8, data, LineFilter, 0, 8);
short_way!(data_16, data, LineFilter, 0, 16);
short_way!(fetch_8, fetch, FetchFilter, 1, 8);
short_way!(fetch_16, fetch, FetchFilter, 1, 16);

impl First {
    fn new<F: Filter>(l1: &mut L1<F>, misses: &mut CacheCounters) -> Option<Self> {
        let (filter, used) = l1.filter()?.parts();
        let (sets, _, set_mask, set_bits) = l1.cache.parts();
        Some(Self {
            sets,
            set_mask,
            set_bits,
            entries: l1.entries(),
            filter,
            used,
            misses: misses.misses.as_mut_ptr(),
        })
    }
}

impl Hier {
    /// The short way of a core's accesses, if its caches are of the kind.
    pub(super) fn short_way(&mut self, env: &Env<'_>, core: usize) -> Option<ShortWay> {
        let c = &mut *self.cores[core];
        let plain = c.has_near_firsts() && c.bit != 0 && c.stores_pass && !self.next_line;
        let (below, counters) = match &mut c.l2 {
            Some(l2) => (l2, &mut c.counters.l2),
            None => (&mut self.llc, &mut c.counters.llc),
        };
        let (data_way, fetch_way): (unsafe extern "sysv64" fn(), unsafe extern "sysv64" fn()) =
            match below.width() {
                8 => (data_8, fetch_8),
                16 => (data_16, fetch_16),
                _ => return None,
            };
        if !plain || !below.is_ranked() || !is_x86_feature_detected!("avx2") {
            return None;
        }
        let (below_sets, below_ranks, below_mask, below_bits) = below.parts();
        let below_hits = counters.hits.as_mut_ptr();
        Some(ShortWay {
            data: First::new(&mut c.l1d, &mut c.counters.l1d)?,
            fetch: First::new(&mut c.l1i, &mut c.counters.l1i)?,
            hosts: c.l1i.filter()?.hosts(),
            below_sets,
            below_ranks,
            below_mask,
            below_bits,
            below_hits,
            write_backs: &raw mut c.counters.l1d.write_backs,
            pages: self.pages.words(),
            raw: env.dram.raw.ptr(0).as_ptr(),
            plain: env.dram.plain_of()?.ptr(0).as_ptr(),
            strides: match self.degree {
                0 => std::ptr::null_mut(),
                _ => c.strides.streams(),
            },
            due: &raw mut self.due,
            core: c.bit,
            clean_may_go: u64::from(self.inclusion == Inclusion::Inclusive),
            data_way,
            fetch_way,
        })
    }
}
