//! The product on the CPU's own registers: four hold sums, two a panel's rows for 32 values, two the left side. They
//! are set up and given back within each block of assembly, so nothing outside it need know of them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::{COLUMNS, EXACT, Left, PAIRS, PairRow, ROUNDED, ROWS, Sums};

/// Eight registers of sixteen rows of 64 bytes, as `LDTILECFG` reads it.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    first_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static LAYOUT: Layout = {
    let mut layout = Layout { palette: 1, first_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut register = 0;
    while register < 8 {
        layout.row_bytes[register] = 64;
        layout.rows[register] = ROWS as u8;
        register += 1;
    }
    layout
};

/// Whether the CPU has the registers and their bfloat16 product, and the system lets this process use them: their
/// memory is kept for those that ask.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && may_use())
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let (most, found) = (__cpuid_count(0, 0).eax, __cpuid_count(7, 0).edx);
    most >= 7 && found & (BF16 | TILE) == BF16 | TILE && is_x86_feature_detected!("avx512bw")
}

#[expect(unsafe_code, reason = "a system call that the standard library does not offer")]
fn may_use() -> bool {
    // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILE_DATA of Linux's documentation, arch/x86/xstate.
    const REQUEST: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

/// As [`super::Product`] says.
#[expect(unsafe_code, reason = "what the assembly reads and writes is measured right before")]
pub(super) fn product(left: &[Left], terms: usize, panel: &[PairRow], sums: &mut Sums, add: bool) {
    let steps = panel.len() / PAIRS;
    let registers = left.len().checked_div(steps).unwrap_or_default();
    assert!(panel.len() == steps * PAIRS && left.len() == steps * registers, "a product has another size");
    assert!(is_available(), "this CPU has no tile registers");
    // SAFETY: the CPU has the registers, and `left` holds so many of them for every step, of which there is one.
    unsafe {
        match (terms, registers) {
            (ROUNDED, 1) => one(left, panel, sums, add, steps),
            (ROUNDED, 2) => two(left, panel, sums, add, steps),
            (EXACT, 3) => one_exact(left, panel, sums, add, steps),
            (EXACT, 6) => two_exact(left, panel, sums, add, steps),
            _ => unreachable!("a left side of {registers} registers of {terms} terms"),
        }
    }
}

/// A register of the first or only group of rows, which lies so many bytes on, times both of the panel.
macro_rules! first {
    ($at:literal) => {
        concat!(
            "tileloadd tmm6, [{left} + {line} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm0, tmm6, tmm4\n",
            "tdpbf16ps tmm1, tmm6, tmm5"
        )
    };
}

/// As `first`, of the second group.
macro_rules! second {
    ($at:literal) => {
        concat!(
            "tileloadd tmm7, [{left} + {line} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm2, tmm7, tmm4\n",
            "tdpbf16ps tmm3, tmm7, tmm5"
        )
    };
}

/// A function that goes over all steps, in each of which its last operands multiply so many bytes of a left side.
macro_rules! products {
    ($name:ident, $bytes:literal, $($step:expr),+) => {
        /// # Safety
        /// The CPU has the registers, `left` holds so many bytes for each of at least one step, and the panel its rows.
        #[expect(unsafe_code, reason = "instructions that have no stable intrinsics")]
        unsafe fn $name(left: &[Left], panel: &[PairRow], sums: &mut Sums, add: bool, steps: usize) {
            // SAFETY: the caller's promise; `sums` has room for four registers.
            unsafe {
                asm!(
                    "ldtilecfg [{layout}]",
                    "test {add:e}, {add:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{sums} + {row}]",
                    "tileloadd tmm1, [{sums} + {row} + 64]",
                    "tileloadd tmm2, [{sums} + {row} + 2048]",
                    "tileloadd tmm3, [{sums} + {row} + 2112]",
                    "3:",
                    "tileloadd tmm4, [{panel} + {row}]",
                    "tileloadd tmm5, [{panel} + {row} + 64]",
                    $($step,)+
                    // What the fourth step from here reads of the panel: a CPU does not see by itself where such
                    // loads go on. Nothing need lie there.
                    ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                    "prefetcht0 [{panel} + 8192 + 128 * \\line]",
                    "prefetcht0 [{panel} + 8256 + 128 * \\line]",
                    ".endr",
                    "add {left}, {bytes}",
                    "add {panel}, 2048",
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 64], tmm1",
                    "tilestored [{sums} + {row} + 2048], tmm2",
                    "tilestored [{sums} + {row} + 2112], tmm3",
                    "tilerelease",
                    layout = in(reg) &raw const LAYOUT,
                    add = in(reg) u32::from(add),
                    bytes = const $bytes,
                    sums = in(reg) sums.0.as_mut_ptr(),
                    row = in(reg) size_of::<[f32; COLUMNS]>(),
                    line = in(reg) size_of::<[u32; PAIRS]>(),
                    left = inout(reg) left.as_ptr() => _,
                    panel = inout(reg) panel.as_ptr() => _,
                    steps = inout(reg) steps => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

products!(one, 1024, first!("0"));
products!(two, 2048, first!("0"), second!("1024"));
products!(one_exact, 3072, first!("0"), first!("1024"), first!("2048"));
products!(
    two_exact,
    6144,
    first!("0"),
    second!("1024"),
    first!("2048"),
    second!("3072"),
    first!("4096"),
    second!("5120")
);
