//! The GHCB page and the GHCB MSR, from both sides.
//!
//! Steps against a whole hypervisor half: a page or an MSR value, then VMGEXIT; it answers, refuses or ends the guest.
//! What `validate` accepts must mean the same when the guest half says it again, and the guest half must survive any
//! answer. Proxied system calls are left out (they would run on the host): see the `syscall` target.
//!
//! Input: a byte (mode), then steps: a byte says which.
#![no_main]

use std::mem::offset_of;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sevlab_arch::exit::ExitCode;
use sevlab_arch::ghcb::SHARED_BUFFER_LEN;
use sevlab_arch::vmcb::Control;
use sevlab_arch::{Asid, Gpa};
use sevlab_cpu::{Vcpu, VcpuConfig};
use sevlab_fuzz::{GHCB, Input, contexts, session};
use sevlab_ghcb::msr::MsrRequest;
use sevlab_ghcb::psc::PscList;
use sevlab_ghcb::{Ghcb, hv};
use sevlab_machine::hv::cpuid::CpuModel;
use sevlab_machine::hv::{Hypervisor, hostcall};
use sevlab_machine::{Error, Layout, SevMode};
use sevlab_memctl::{CacheMode, CipherKind, Config, Domain, MemCtl};
use zerocopy::{FromZeros, IntoBytes};

const STEPS: usize = 12;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mode = input.u8();
    let mut board = (mode & 1 != 0).then(|| {
        Board::new(if mode & 2 == 0 {
            SevMode::Es
        } else {
            SevMode::Snp
        })
    });
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() & 3 {
            0 => {
                let value = input.word(&[GHCB.0, GHCB.0 | 0x12, 0x014, 0x20_0014]);
                message(value, input.u64());
                if let Some(board) = &mut board {
                    board.vmgexit(value);
                }
            }
            1 => list(&mut input),
            n => {
                let at = board.as_ref().map_or(GHCB, |b| b.layout.ghcb_gpa());
                let page = if n == 2 {
                    sparse(&mut input, at)
                } else {
                    whole(&mut input)
                };
                protocol(&page, &mut input);
                if let Some(board) = &mut board {
                    board.page(&page);
                }
            }
        }
    }
});

/// A page of which the fields that matter are given, the others are zero.
fn sparse(input: &mut Input, at: Gpa) -> Box<Ghcb> {
    let mut page = Box::new(Ghcb::new_zeroed());
    let anchors = [
        at.0,
        at.0 + 0x800,
        at.0 + 0x1000,
        at.0 + 0xff0,
        0x1000,
        0x20_0000,
        1 << 51,
    ];
    let code = input.u8();
    let code = match ExitCode::ALL.get(usize::from(code)) {
        Some(code) => code.0,
        None => input.word(&[0x8000_0000]),
    };
    page.set_sw_exit_code(code);
    page.set_sw_exit_info1(input.word(&anchors));
    page.set_sw_exit_info2(input.word(&anchors));
    let some = input.u8();
    let setters: [fn(&mut Ghcb, u64); 8] = [
        Ghcb::set_rax,
        Ghcb::set_rbx,
        Ghcb::set_rcx,
        Ghcb::set_rdx,
        Ghcb::set_rsi,
        Ghcb::set_sw_scratch,
        Ghcb::set_xcr0,
        |g, v| g.set_cpl(v as u8),
    ];
    for (n, set) in setters.iter().enumerate() {
        if some & 1 << n != 0 {
            set(&mut page, input.word(&anchors));
        }
    }
    let version = input.u8();
    page.set_protocol_version(u16::from(version & 3));
    page.set_usage(u32::from(version >> 6));
    let buffer = usize::from(input.u8()) * 8;
    let bytes = input.bytes(buffer.min(SHARED_BUFFER_LEN));
    page.shared_buffer_mut()[..bytes.len()].copy_from_slice(bytes);
    page
}

fn whole(input: &mut Input) -> Box<Ghcb> {
    let mut page = Box::new(Ghcb::new_zeroed());
    let bytes = input.bytes(4096);
    page.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    page
}

/// Both halves without a machine.
fn protocol(page: &Ghcb, input: &mut Input) {
    for context in &contexts() {
        let request = match hv::validate(page, context) {
            Ok(request) => request,
            Err(refusal) => {
                let mut answer = page.clone();
                hv::refuse(&mut answer, &refusal);
                continue;
            }
        };
        let mut again = Ghcb::new_zeroed();
        request.fill(&mut again, &session(page.protocol_version()));
        assert_eq!(hv::validate(&again, context), Ok(request));
        // The hypervisor's answer is any page.
        if let Ok(response) = request.finish(page) {
            let mut answer = page.clone();
            hv::respond(&mut answer, &request, &response).expect("the shape that was asked for");
            assert_eq!(request.finish(&answer), Ok(response));
        }
        again.set_sw_exit_info1(u64::from(input.u8()));
        again.set_sw_exit_info2(input.word(&[0x8000_0b0d, 0x8000_0306]));
        let _ = request.finish(&again);
    }
}

/// The MSR protocol without a machine.
fn message(value: u64, answer: u64) {
    if let Ok(request) = MsrRequest::decode(value) {
        assert_eq!(MsrRequest::decode(request.encode()), Ok(request));
        if let Ok(response) = request.finish(answer) {
            assert_eq!(request.finish(response.encode()), Ok(response));
        }
        let _ = request.finish(answer & !0xfff | value & 0xfff | 1);
    }
}

/// A page state change list: parsed by one side, its progress checked by the other.
fn list(input: &mut Input) {
    let n = usize::from(input.u8()) * 8;
    let Ok(mut list) = PscList::parse(input.bytes(n)) else {
        return;
    };
    let mut mine = list.clone();
    let mut room = [0; 8 + 8 * 256];
    for _ in 0..16 {
        if !matches!(list.current(), Ok(Some(_))) {
            break;
        }
        list.advance(input.u16());
        list.write(&mut room).expect("room for the longest list");
        let progress = mine.check_progress(&room);
        // A guest's own list has no entry that means nothing; this one may.
        if list.current().is_err() {
            break;
        }
        progress.expect("progress that was made");
    }
    let n = usize::from(input.u8()) * 8;
    let _ = mine.check_progress(input.bytes(n));
}

/// A hypervisor with a vCPU to answer.
struct Board {
    mem: Arc<MemCtl>,
    layout: Layout,
    hv: Hypervisor,
    vcpu: Box<Vcpu>,
}

impl Board {
    fn new(mode: SevMode) -> Self {
        let snp = mode == SevMode::Snp;
        let layout = Layout::new(4 << 20, 1 << 16, snp);
        let mem = MemCtl::new(Config {
            size: layout.size,
            cipher: CipherKind::Aes128Xex,
            cache: CacheMode::Page,
            resident: None,
            tweak_seed: 1,
            hierarchy: None,
            cores: 1,
            snp,
        })
        .expect("memory");
        let cpuid = Arc::new(CpuModel::host(mode, 509, 100));
        let hv = Hypervisor::new(Arc::clone(&mem), layout.clone(), mode, Asid(1), cpuid)
            .expect("a hypervisor");
        let vcpu = Vcpu::new(Arc::clone(&mem), VcpuConfig::default());
        let mut board = Self {
            mem,
            layout,
            hv,
            vcpu,
        };
        let registration = board.layout.ghcb_gpa().0 | 0x12;
        board.vmgexit(registration);
        board
    }

    fn vmgexit(&mut self, msr: u64) {
        let control = [
            (offset_of!(Control, exit_code), ExitCode::VMGEXIT.0),
            (offset_of!(Control, ghcb_gpa), msr),
        ];
        for (offset, value) in control {
            let at = self.hv.vmcb().plus(offset as u64);
            self.mem
                .write_u64(Domain::Shared, at, value)
                .expect("the VMCB");
        }
        match self.hv.handle(&mut self.vcpu) {
            Ok(()) | Err(Error::GhcbMsr { .. } | Error::Terminated { .. }) => {}
            Err(e) => panic!("{e}"),
        }
        assert_eq!(self.hv.calls.executed, 0, "nothing may reach the host");
    }

    fn page(&mut self, page: &Ghcb) {
        let window = self.layout.shared_window();
        let asks = page.rax().ok() == Some(hostcall::NUMBER);
        if asks
            && page
                .rbx()
                .is_ok_and(|b| (window.start.0.saturating_sub(64)..window.end.0).contains(&b))
        {
            return;
        }
        // The page may have been made private.
        if self
            .mem
            .write(Domain::Shared, self.layout.shared, page.as_bytes())
            .is_ok()
        {
            self.vmgexit(self.layout.ghcb_gpa().0);
        }
    }
}
