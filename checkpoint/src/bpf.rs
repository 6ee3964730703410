//! Instructions of small BPF programs (`struct bpf_insn` in include/uapi/linux/bpf.h; docs.kernel.org, "BPF Instruction Set").
//!
//! No compiler is needed for a dozen of them. `sys` loads the programs.

/// Of [`load`]: 64 bits.
pub(crate) const DOUBLE: u8 = 0x79;
/// Of [`load`]: 32 bits.
pub(crate) const WORD: u8 = 0x61;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_ne_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// `to = *(from + offset)`
pub(crate) fn load(size: u8, to: u8, from: u8, offset: i16) -> u64 {
    instruction(size, to, from, offset, 0)
}

/// `*(u64 *)(to + offset) = from`
pub(crate) fn store(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x7b, to, from, offset, 0)
}

/// `*(u32 *)(to + offset) = value`
pub(crate) fn store_value(to: u8, offset: i16, value: i32) -> u64 {
    instruction(0x62, to, 0, offset, value)
}

/// `to = from`
pub(crate) fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`
pub(crate) fn set(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}

/// `to += value`
pub(crate) fn add(to: u8, value: i32) -> u64 {
    instruction(0x07, to, 0, 0, value)
}

/// Leaves out so many instructions if `register == value`.
pub(crate) fn if_equal(register: u8, value: i32, leave_out: i16) -> u64 {
    instruction(0x15, register, 0, leave_out, value)
}

/// `r0 = helper(r1 ... r5)`
pub(crate) fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// Returns `r0`.
pub(crate) fn exit() -> u64 {
    instruction(0x95, 0, 0, 0, 0)
}

/// The object of an [iterator's](for_each) program, and where it prints.
pub(crate) const OBJECT: u8 = 6;
const OUTPUT: u8 = 7;

/// The program of an iterator: for the object to which the context has a pointer at this place in bytes, it puts words at the end of
/// the stack, by `body`, and [prints](print) them.
pub(crate) fn for_each(object: i16, body: &[u64], format: &str, words: usize) -> Vec<u64> {
    let print = print(format, words);
    // Last of all comes one call without an object: to `r0 = 0; exit`.
    let rest = (body.len() + print.len() + 2) as i16;
    let mut code = vec![
        load(DOUBLE, OBJECT, 1, object),
        if_equal(OBJECT, 0, rest),
        // `meta->seq`
        load(DOUBLE, OUTPUT, 1, 0),
        load(DOUBLE, OUTPUT, OUTPUT, 0),
    ];
    code.extend(body);
    code.extend(print);
    code.extend([set(0, 0), exit()]);
    code
}

/// The end of the stack.
pub(crate) const FRAME: u8 = 10;

/// Prints words that lie at the end of the stack (`bpf_seq_printf()`).
fn print(format: &str, words: usize) -> Vec<u64> {
    const SEQ_PRINTF: i32 = 126;
    let mut format = format!("{format}\0").into_bytes();
    let format_size = format.len() as i32;
    format.resize(format.len().next_multiple_of(4), 0);
    let data_size = 8 * words as i32;
    let format_at = (-data_size - format.len() as i32) as i16;
    let (parts, _) = format.as_chunks::<4>();
    let parts = parts.iter().zip((format_at..).step_by(4));
    let mut code: Vec<u64> = parts.map(|(part, at)| store_value(FRAME, at, i32::from_ne_bytes(*part))).collect();
    code.extend([
        copy(1, OUTPUT),
        copy(2, FRAME),
        add(2, i32::from(format_at)),
        set(3, format_size),
        copy(4, FRAME),
        add(4, -data_size),
        set(5, data_size),
        call(SEQ_PRINTF),
    ]);
    code
}
