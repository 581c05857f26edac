use iced_x86::{Code, CpuidFeature as F, EncodingKind};
use sevlab_cpu::table::{self, Route};
#[test]
fn list() {
    for code in Code::values() {
        let op = code.op_code();
        if !op.mode64() || matches!(code.encoding(), EncodingKind::EVEX | EncodingKind::MVEX) {
            continue;
        }
        let r = table::row(code);
        if r.route == Route::Undefined {
            println!(
                "{:?} {:?} {}",
                code,
                code.cpuid_features(),
                op.instruction_string()
            );
        }
    }
    let _ = F::SSE;
}
