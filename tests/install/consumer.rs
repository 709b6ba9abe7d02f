// What a program in Rust relies on: declarations by hand of the C interface, and its layout of the
// structs.
use std::ffi::CStr;
use std::mem::{size_of, zeroed};
use std::os::raw::{c_char, c_int, c_void};
use std::ptr::{null, null_mut};

#[repr(C)]
#[derive(Clone, Copy)]
struct TensorLayout {
    offset: i64,
    batch_stride: i64,
    head_stride: i64,
    row_stride: i64,
}

#[repr(C)]
struct Problem {
    struct_size: usize,
    dtype: i32,
    out_f32: i32,
    return_lse: i32,
    causal: i32,
    batch: i64,
    n_heads: i64,
    n_kv_heads: i64,
    seq_len: i64,
    kv_capacity: i64,
    head_dim: i64,
    value_dim: i64,
    layouts: [TensorLayout; 4],
    scale: f32,
    softcap: f32,
    score_arrays: [*const c_void; 3],
    visibility: [i64; 6],
    per_sequence: [*const i64; 4],
    key_offset: i64,
    key_stride: i64,
    packed: [*const i64; 4],
    q_total: i64,
    kv_total: i64,
    pages: *const c_void,
    kernel: *const c_char,
}

#[repr(C)]
struct Operands {
    struct_size: usize,
    q: *const c_void,
    k: *const c_void,
    v: *const c_void,
    out: *mut c_void,
    others: [*const c_void; 5],
}

type Release = Option<extern "C" fn(*mut c_void)>;

extern "C" {
    fn metal_sdpa_device_open(
        kind: *const c_char,
        options: *const c_void,
        device: *mut *mut c_void,
    ) -> c_int;
    fn metal_sdpa_device_close(device: *mut c_void);
    fn metal_sdpa_buffer_wrap(
        device: *const c_void,
        dtype: i32,
        data: *mut c_void,
        byte_len: usize,
        read_only: i32,
        release: Release,
        context: *mut c_void,
        buffer: *mut *mut c_void,
    ) -> c_int;
    fn metal_sdpa_buffer_release(buffer: *mut c_void);
    fn metal_sdpa_problem_init(problem: *mut Problem, struct_size: usize) -> c_int;
    fn metal_sdpa_problem_set_packed_layouts(problem: *mut Problem) -> c_int;
    fn metal_sdpa_operands_init(operands: *mut Operands, struct_size: usize) -> c_int;
    fn metal_sdpa_sdpa(
        device: *const c_void,
        problem: *const Problem,
        operands: *const Operands,
    ) -> c_int;
    fn metal_sdpa_last_message() -> *const c_char;
    fn metal_sdpa_version() -> *const c_char;
}

fn text(pointer: *const c_char) -> String {
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

fn check(status: c_int) {
    assert_eq!(status, 0, "{}", text(unsafe { metal_sdpa_last_message() }));
}

/// A vector's memory goes to the library, and comes back here.
extern "C" fn drop_vector(context: *mut c_void) {
    drop(unsafe { Box::from_raw(context as *mut Vec<f32>) });
}

fn wrap(device: *const c_void, numbers: Vec<f32>) -> *mut c_void {
    let mut boxed = Box::new(numbers);
    let (data, bytes) = (boxed.as_mut_ptr(), boxed.len() * 4);
    let context = Box::into_raw(boxed) as *mut c_void;
    let mut buffer = null_mut();
    check(unsafe {
        metal_sdpa_buffer_wrap(
            device,
            0,
            data as *mut c_void,
            bytes,
            1,
            Some(drop_vector),
            context,
            &mut buffer,
        )
    });
    buffer
}

fn main() {
    let mut device = null_mut();
    let mut out = vec![0f32; 8];
    let mut out_buffer = null_mut();
    unsafe {
        check(metal_sdpa_device_open(
            b"cpu\0".as_ptr() as *const c_char,
            null(),
            &mut device,
        ));
        let q = wrap(device, vec![0.0; 8]);
        let k = wrap(device, vec![0.0; 12]);
        let v = wrap(device, (0..12).map(|i| i as f32).collect());
        check(metal_sdpa_buffer_wrap(
            device,
            0,
            out.as_mut_ptr() as *mut c_void,
            32,
            0,
            None,
            null_mut(),
            &mut out_buffer,
        ));
        let mut problem: Problem = zeroed();
        check(metal_sdpa_problem_init(&mut problem, size_of::<Problem>()));
        problem.n_heads = 2;
        problem.n_kv_heads = 1;
        problem.seq_len = 1;
        problem.kv_capacity = 3;
        problem.head_dim = 4;
        problem.value_dim = 4;
        problem.scale = 1.0;
        check(metal_sdpa_problem_set_packed_layouts(&mut problem));
        let mut operands: Operands = zeroed();
        check(metal_sdpa_operands_init(
            &mut operands,
            size_of::<Operands>(),
        ));
        operands.q = q;
        operands.k = k;
        operands.v = v;
        operands.out = out_buffer;
        check(metal_sdpa_sdpa(device, &problem, &operands));
        problem.n_heads = 3;
        problem.n_kv_heads = 2;
        assert_eq!(metal_sdpa_sdpa(device, &problem, &operands), 1);
        assert!(text(metal_sdpa_last_message()).contains("n_heads: 3"));
        for buffer in [q, k, v, out_buffer] {
            metal_sdpa_buffer_release(buffer);
        }
        metal_sdpa_device_close(device);
    }
    assert_eq!(out, [4.0, 5.0, 6.0, 7.0, 4.0, 5.0, 6.0, 7.0]);
    println!(
        "Rust consumer: ok, metal_sdpa {}",
        text(unsafe { metal_sdpa_version() })
    );
}
