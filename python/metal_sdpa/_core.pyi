import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from numpy.typing import NDArray

from ._typing import Array, ArrayT, BytesLike, DTypeLike, Indices

__version__: str

class Error(Exception):
    """Every error of this package."""

class InvalidArgument(Error, ValueError):
    """A value, shape, state or range that the call does not take."""

class InvalidType(InvalidArgument, TypeError):
    """An argument of a Python type that the call does not take."""

class UnsupportedDType(Error, TypeError):
    """A dtype, or a mix of dtypes, that the kernel does not take."""

class Unsupported(Error, NotImplementedError):
    """Not built yet, or not on this device."""

class DeviceNotFound(Error):
    """No such device kind, or no such device on this machine."""

class KernelNotFound(Error):
    """No library of the registry has the function for this device."""

class ShaderCompilationError(Error):
    """The shader compiler refused; the text holds its whole log."""

class CommandBufferError(Error):
    """The device reported an error while it ran a command buffer."""

class BufferAllocationError(Error, MemoryError):
    """The device had no memory for a buffer."""

def shutdown() -> None:
    """
    Waits for what was committed to all devices and ends the threads of the library; a later call
    starts them anew. InvalidArgument from a signal handler that runs in the middle of another call.
    """

class DType(enum.Enum):
    """Element type of a buffer."""

    f32 = 0
    """IEEE 754 binary32"""

    f16 = 1
    """IEEE 754 binary16"""

    bf16 = 2
    """bfloat16: the upper half of a binary32"""

    u8 = 3

    u16 = 4

    u32 = 5

    i32 = 6

    i64 = 7

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""

def as_dtype(dtype: object | None) -> DType:
    """
    The DType of a name ("f32", "float32") or of a dtype of NumPy, ml_dtypes, torch, JAX or MLX.

    UnsupportedDType for any other.
    """

class Buffer:
    """
    A typed view of device memory. Views share the memory and keep it alive.

    `numpy()` and `__dlpack__` do not wait for work in flight: host access while the device
    works is the caller's error.
    """

    @property
    def dtype(self) -> DType:
        """DType of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, outermost first; row-major."""

    @property
    def byte_len(self) -> int:
        """Bytes of this view, not of the allocation behind it."""

    @property
    def byte_offset(self) -> int:
        """Bytes from the start of the allocation to this view."""

    @property
    def element_count(self) -> int:
        """Product of `shape`."""

    @property
    def read_only(self) -> bool:
        """Whether nothing may write it."""

    def slice_view(self, byte_offset: int, n_elements: int) -> Buffer:
        """
        A flat view [n_elements] from `byte_offset` of this view; a slice of a slice adds offsets.

        InvalidArgument where the offset is no multiple of the element size or the range leaves this view.
        """

    def reshape(self, shape: Sequence[int]) -> Buffer:
        """The same bytes with another shape; the element count must stay."""

    def numpy(self) -> NDArray[Any]:
        """
        A NumPy array over the memory, without a copy. bf16 is ml_dtypes.bfloat16 where that is installed,
        else uint16 bits.
        """

    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over the memory, without a copy."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0) for host memory, (8, 0) for Metal."""

    def __repr__(self) -> str: ...

class DeviceLimits:
    """What a device can take; sizes in bytes."""

    @property
    def max_buffer_bytes(self) -> int: ...
    @property
    def max_threads_per_threadgroup(self) -> int: ...
    @property
    def max_threadgroup_memory(self) -> int: ...
    @property
    def max_head_dim(self) -> int:
        """For D and Dv."""

    @property
    def max_inline_bytes(self) -> int:
        """Of one bytes binding."""

    @property
    def max_binding_index(self) -> int: ...
    @property
    def max_threadgroup_memory_index(self) -> int: ...

class Device:
    """
    A handle of the CPU or of the Apple GPU. Two handles of one kind are the same device.

    `kind` is "auto" (Metal where there is one, else the CPU), "metal" or "cpu". `threads` and
    `isa` hold for CPU work through this handle. DeviceNotFound where there is no such device.
    """

    def __init__(
        self, kind: str = "auto", *, threads: int | None = None, isa: str | None = None
    ) -> None: ...
    @property
    def kind(self) -> str:
        """ "cpu" or "metal"."""

    @property
    def name(self) -> str:
        """The processor's own name."""

    @property
    def limits(self) -> DeviceLimits: ...
    @property
    def library_origin(self) -> str:
        """
        Where the kernels come from: "metallib PATH", "embedded source"; empty: built in.
        """

    def synchronize(self) -> None:
        """
        Waits for everything committed to the device before the call; raises the first error that nobody
        waited for. Ctrl-C cancels what this thread committed, and nothing else.
        """

    def command_encoder(self) -> CommandEncoder:
        """A fresh CommandEncoder; one-shot, for one thread at a time."""

    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __repr__(self) -> str: ...
    def alloc_buffer(self, byte_len: int, dtype: DTypeLike, shape: Sequence[int]) -> Buffer:
        """
        Zero-filled memory at a 128-byte boundary.

        InvalidArgument where `byte_len` is 0 or is not the size of `shape`; BufferAllocationError
        where the device has no room.
        """

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Buffer:
        """`alloc_buffer` with the byte length that `shape` and `dtype` need."""

    def wrap(self, array: Array, *, dtype: DTypeLike | None = None) -> Buffer:
        """
        The memory of a packed row-major array, never a copy; the array stays alive with the Buffer.

        `dtype` reads the elements as another dtype of the same size (uint16 bits as bf16).
        Metal takes Metal arrays, and page-aligned host memory of whole pages.
        InvalidArgument for other layouts, UnsupportedDType for dtypes without a DType,
        Unsupported for memory of other devices.
        """

def get_num_threads() -> int:
    """
    Threads that CPU work uses unless its Device says otherwise: at first the affinity mask capped
    by the cgroup quota, or METAL_SDPA_NUM_THREADS as it was at import.
    """

def set_num_threads(n_threads: int) -> None:
    """1 to 1024; results do not depend on it."""

class Pipeline:
    """A function of a library with its constants set."""

    @property
    def name(self) -> str:
        """The function's name."""

    @property
    def max_threads_per_threadgroup(self) -> int: ...

class KernelRegistry:
    """
    Kernels by name: shader sources, native CPU kernels, and the pipelines made from them.

    Thread-safe. A new registry holds the attention kernels of this package.
    """

    def __init__(self, device: Device | str) -> None: ...
    def register_source(self, library: str, source: str) -> None:
        """
        Adds MSL source under a library name, compiled when first needed. The same name again
        replaces it and drops every pipeline made from the old source.
        """

    def register_native(self, name: str, kernel: Any) -> None:
        """
        Gives the CPU device a kernel: the address of a C++ function of type metal_sdpa::NativeKernel,
        as an int or in a capsule named "metal_sdpa.NativeKernel". Unsupported on Metal.
        """

    def get_pipeline(
        self,
        function: str,
        constants: Mapping[int, bool | int | float | tuple[DTypeLike, float]] | None = None,
        library: str | None = None,
    ) -> Pipeline:
        """
        The pipeline of `function`, made once per library, function and constants.

        Of the package's own kernels these are sdpa, sdpa_f16 and sdpa_bf16; what they are given by hand
        is checked against their bindings.

        Libraries are searched in order of registration. A bool, int (i32) or float (f32) is a function
        constant by index; (DType.u32, 5) where the shader declares another type. KernelNotFound where
        no library has the function for this device; ShaderCompilationError with the compiler's log;
        InvalidArgument where two libraries have it and none is named.
        """

    @property
    def device(self) -> Device: ...
    @property
    def cached_pipelines(self) -> int: ...
    @property
    def library_compiles(self) -> int:
        """Compiles of libraries done so far."""

def register_sdpa(registry: KernelRegistry) -> None:
    """
    Registers the attention kernels; every new registry has done it, and doing it again is harmless.
    """

class OpKind(enum.Enum):
    """
    What a dispatch computes; `Graph.reorder` moves only rms_norm, elem_mul and elem_add.
    """

    rms_norm = 0

    elem_mul = 1

    elem_add = 2

    sdpa = 3

    softmax = 4

    other = 5

class CommandEncoder:
    """
    Records dispatches into one command buffer, places barriers, commits.

    One-shot and for one thread at a time. A call in the wrong state is InvalidArgument. An encoder
    that is dropped uncommitted is discarded.
    """

    def __init__(self, device: Device | str) -> None: ...
    def commit(self) -> None:
        """Hands the command buffer to the device's in-order queue and returns."""

    def wait_until_completed(self) -> None:
        """Waits for it; raises its error (CommandBufferError)."""

    def commit_and_wait(self) -> None:
        """
        commit and wait_until_completed; on the calling thread where the CPU queue is idle.
        """

    @property
    def gpu_time_s(self) -> float:
        """
        Seconds that the device spent on it; InvalidArgument before it is completed.
        """

    @property
    def device(self) -> Device: ...
    def encode_threadgroups(
        self,
        pipeline: Pipeline,
        bindings: Sequence[tuple[int, Buffer | BytesLike]],
        threadgroups: int | Sequence[int],
        threadgroup_size: int | Sequence[int],
        *,
        threadgroup_memory: Sequence[tuple[int, int]] | None = None,
        reads: Sequence[tuple[Buffer, int, int]] | None = None,
        writes: Sequence[tuple[Buffer, int, int]] | None = None,
    ) -> None:
        """
        Records one dispatch, behind a barrier where its ranges conflict with dispatches since the last one.

        `bindings` are (index, Buffer or bytes up to 4096); `threadgroup_memory` is (index, bytes).
        `reads` and `writes` are (Buffer, offset, length) in bytes: None is undeclared and conflicts with
        everything, [] touches nothing. InvalidArgument for a bad index or range, an index bound twice, a
        buffer of another device, a zero or too large grid, bytes over the limit.
        """

    def set_op_kind(self, kind: OpKind) -> None:
        """Tags the next encode, and only that one."""

    def memory_barrier(self) -> None:
        """Everything before it completes before anything after it starts."""

    @property
    def barrier_count(self) -> int:
        """
        Barriers placed so far, by hand or by the hazard tracker; those of a capture do not count.
        """

    def begin_capture(self) -> None:
        """From here on encodes are recorded into a graph and nothing is encoded."""

    def end_capture(self) -> Graph:
        """The Graph of what was recorded."""

    @property
    def capturing(self) -> bool:
        """Whether a capture is open."""

class TensorLayout:
    """
    Where element [b][h][i][d] of a tensor stands: offset + b * batch_stride + h * head_stride +
    i * row_stride + d elements from the start of its Buffer.
    """

    def __init__(
        self, *, offset: int = 0, batch_stride: int = 0, head_stride: int = 0, row_stride: int = 0
    ) -> None: ...
    @property
    def offset(self) -> int:
        """Of element [0][0][0][0]."""

    @property
    def batch_stride(self) -> int:
        """Elements from b to b + 1."""

    @property
    def head_stride(self) -> int:
        """Elements from head to head."""

    @property
    def row_stride(self) -> int:
        """Elements from row to row."""

    def __repr__(self) -> str: ...

class MaskLayout:
    """
    Where element [b][h][i][j] of a mask over [B, Hq, L, S] stands; a stride of 0 broadcasts.
    """

    def __init__(
        self,
        *,
        dtype: DTypeLike = "u8",
        offset: int = 0,
        batch_stride: int = 0,
        head_stride: int = 0,
        row_stride: int = 0,
        key_stride: int = 1,
    ) -> None: ...
    @property
    def dtype(self) -> DTypeLike:
        """
        u8: anything but 0 lets the row see the key; f32, f16 and bf16 are added to the score.
        """

    @property
    def offset(self) -> int:
        """Of element [0][0][0][0]."""

    @property
    def batch_stride(self) -> int:
        """Elements from b to b + 1."""

    @property
    def head_stride(self) -> int:
        """Elements from head to head."""

    @property
    def row_stride(self) -> int:
        """Elements from query to query."""

    @property
    def key_stride(self) -> int:
        """Elements from key to key."""

    def __repr__(self) -> str: ...

class HeadLayout:
    """Where a number a head stands, in elements."""

    def __init__(
        self,
        *,
        dtype: DTypeLike = "f32",
        offset: int = 0,
        batch_stride: int = 0,
        head_stride: int = 1,
    ) -> None: ...
    @property
    def dtype(self) -> DTypeLike:
        """Of the numbers."""

    @property
    def offset(self) -> int:
        """Of the number of head 0."""

    @property
    def batch_stride(self) -> int:
        """Elements from b to b + 1."""

    @property
    def head_stride(self) -> int:
        """Elements from head to head."""

    def __repr__(self) -> str: ...

class PageTable:
    """
    Slot j of a sequence is row j % page_len of the page that its entry j // page_len names.
    """

    def __init__(
        self,
        *,
        dtype: DTypeLike = "i32",
        page_len: int = 1,
        n_pages: int = 1,
        offset: int = 0,
        sequence_stride: int = 0,
        entry_stride: int = 1,
        starts: Sequence[int] = (),
        n_entries: int = 0,
        check_entries: bool = True,
    ) -> None: ...
    @property
    def dtype(self) -> DTypeLike:
        """Of the page numbers: i32 or i64."""

    @property
    def page_len(self) -> int:
        """Slots of a page."""

    @property
    def n_pages(self) -> int:
        """Pages that k and v have."""

    @property
    def offset(self) -> int:
        """Of entry [0][0] of the table."""

    @property
    def sequence_stride(self) -> int:
        """Elements from the first entry of b to that of b + 1."""

    @property
    def entry_stride(self) -> int:
        """Elements from entry to entry."""

    @property
    def starts(self) -> Sequence[int]:
        """
        First entry of each sequence, in entries; empty: sequence_stride says it.
        """

    @property
    def n_entries(self) -> int:
        """Of one sequence, or of all with starts."""

    @property
    def check_entries(self) -> bool:
        """
        Whether entries that any row sees are looked at when the work is recorded; replays read the table anew.
        """

    def __repr__(self) -> str: ...

class Visibility:
    """Which keys the queries of an sdpa node see."""

    @property
    def causal(self) -> bool:
        """Nothing behind the query's own position."""

    @property
    def window_left(self) -> int:
        """Positions before the query's own; -1: unlimited."""

    @property
    def window_right(self) -> int:
        """Positions behind the query's own; -1: unlimited."""

    @property
    def kv_len(self) -> int:
        """One past the last slot in use, 0 to S."""

    @property
    def kv_start(self) -> int:
        """First slot in use, 0 to S."""

    @property
    def q_start(self) -> int | None:
        """Position of query 0; None: the last row in use meets the last key."""

    @property
    def query_len(self) -> int | None:
        """Rows in use, 0 to L; None: all."""

    @property
    def kv_lengths(self) -> Sequence[int]:
        """kv_len of each sequence, or empty."""

    @property
    def kv_starts(self) -> Sequence[int]:
        """kv_start of each sequence, or empty."""

    @property
    def q_starts(self) -> Sequence[int]:
        """q_start of each sequence, or empty."""

    @property
    def query_lengths(self) -> Sequence[int]:
        """query_len of each sequence, or empty."""

    @property
    def key_offset(self) -> int:
        """Position of slot 0."""

    @property
    def key_stride(self) -> int:
        """Positions from slot to slot."""

    def __repr__(self) -> str: ...

class SdpaProblem:
    """
    One attention problem: q [B, Hq, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], out [B, Hq, L, Dv].

    Unless given, value_dim is head_dim, kv_len is kv_capacity, and the layouts are packed row-major.
    """

    def __init__(
        self,
        *,
        dtype: DTypeLike = "f32",
        batch: int = 1,
        n_heads: int = 1,
        n_kv_heads: int = 1,
        seq_len: int = 1,
        kv_capacity: int = 1,
        head_dim: int = 1,
        value_dim: int = 1,
        causal: bool = False,
        window_left: int = -1,
        window_right: int = -1,
        kv_len: int = 1,
        kv_start: int = 0,
        q_start: int | None = None,
        query_len: int | None = None,
        kv_lengths: Sequence[int] = (),
        kv_starts: Sequence[int] = (),
        q_starts: Sequence[int] = (),
        query_lengths: Sequence[int] = (),
        key_offset: int = 0,
        key_stride: int = 1,
        scale: float = 1.0,
        softcap: float = 0.0,
        mask: MaskLayout | None = None,
        alibi_slopes: HeadLayout | None = None,
        sinks: HeadLayout | None = None,
        q_rows: Sequence[int] = (),
        q_total: int = 0,
        kv_rows: Sequence[int] = (),
        kv_total: int = 0,
        pages: PageTable | None = None,
        out_f32: bool = False,
        return_lse: bool = False,
        q: TensorLayout = ...,
        k: TensorLayout = ...,
        v: TensorLayout = ...,
        out: TensorLayout = ...,
        kernel: str = "",
    ) -> None: ...
    @property
    def dtype(self) -> DTypeLike:
        """Of q, k and v: f32, f16 or bf16."""

    @dtype.setter
    def dtype(self, value: DTypeLike, /) -> None: ...
    @property
    def batch(self) -> int:
        """B."""

    @batch.setter
    def batch(self, value: int, /) -> None: ...
    @property
    def n_heads(self) -> int:
        """Hq, a multiple of n_kv_heads."""

    @n_heads.setter
    def n_heads(self, value: int, /) -> None: ...
    @property
    def n_kv_heads(self) -> int:
        """Hkv."""

    @n_kv_heads.setter
    def n_kv_heads(self, value: int, /) -> None: ...
    @property
    def seq_len(self) -> int:
        """L."""

    @seq_len.setter
    def seq_len(self, value: int, /) -> None: ...
    @property
    def kv_capacity(self) -> int:
        """S: rows that k and v hold a head."""

    @kv_capacity.setter
    def kv_capacity(self, value: int, /) -> None: ...
    @property
    def head_dim(self) -> int:
        """D."""

    @head_dim.setter
    def head_dim(self, value: int, /) -> None: ...
    @property
    def value_dim(self) -> int:
        """Dv."""

    @value_dim.setter
    def value_dim(self, value: int, /) -> None: ...
    @property
    def causal(self) -> bool:
        """Nothing behind the query's own position."""

    @causal.setter
    def causal(self, value: bool, /) -> None: ...
    @property
    def window_left(self) -> int:
        """Positions before the query's own; -1: unlimited."""

    @window_left.setter
    def window_left(self, value: int, /) -> None: ...
    @property
    def window_right(self) -> int:
        """Positions behind the query's own; -1: unlimited."""

    @window_right.setter
    def window_right(self, value: int, /) -> None: ...
    @property
    def kv_len(self) -> int:
        """One past the last slot in use, 0 to S."""

    @kv_len.setter
    def kv_len(self, value: int, /) -> None: ...
    @property
    def kv_start(self) -> int:
        """First slot in use, 0 to S."""

    @kv_start.setter
    def kv_start(self, value: int, /) -> None: ...
    @property
    def q_start(self) -> int | None:
        """Position of query 0; None: the last row in use meets the last key."""

    @q_start.setter
    def q_start(self, value: int | None, /) -> None: ...
    @property
    def query_len(self) -> int | None:
        """Rows in use, 0 to L; None: all."""

    @query_len.setter
    def query_len(self, value: int | None, /) -> None: ...
    @property
    def kv_lengths(self) -> Sequence[int]:
        """kv_len of each sequence, or empty."""

    @kv_lengths.setter
    def kv_lengths(self, value: Sequence[int], /) -> None: ...
    @property
    def kv_starts(self) -> Sequence[int]:
        """kv_start of each sequence, or empty."""

    @kv_starts.setter
    def kv_starts(self, value: Sequence[int], /) -> None: ...
    @property
    def q_starts(self) -> Sequence[int]:
        """q_start of each sequence, or empty."""

    @q_starts.setter
    def q_starts(self, value: Sequence[int], /) -> None: ...
    @property
    def query_lengths(self) -> Sequence[int]:
        """query_len of each sequence, or empty."""

    @query_lengths.setter
    def query_lengths(self, value: Sequence[int], /) -> None: ...
    @property
    def key_offset(self) -> int:
        """Position of slot 0."""

    @key_offset.setter
    def key_offset(self, value: int, /) -> None: ...
    @property
    def key_stride(self) -> int:
        """Positions from slot to slot."""

    @key_stride.setter
    def key_stride(self, value: int, /) -> None: ...
    @property
    def scale(self) -> float:
        """Of q . k, finite."""

    @scale.setter
    def scale(self, value: float, /) -> None: ...
    @property
    def softcap(self) -> float:
        """c of c * tanh(x / c); 0: none."""

    @softcap.setter
    def softcap(self, value: float, /) -> None: ...
    @property
    def mask(self) -> MaskLayout | None:
        """Where the mask's elements are."""

    @mask.setter
    def mask(self, value: MaskLayout | None, /) -> None: ...
    @property
    def alibi_slopes(self) -> HeadLayout | None:
        """Where the ALiBi slopes are, f32."""

    @alibi_slopes.setter
    def alibi_slopes(self, value: HeadLayout | None, /) -> None: ...
    @property
    def sinks(self) -> HeadLayout | None:
        """Where the sinks are, f32 or of q's dtype."""

    @sinks.setter
    def sinks(self, value: HeadLayout | None, /) -> None: ...
    @property
    def q_rows(self) -> Sequence[int]:
        """
        First row of each sequence in packed q, out [Hq, Tq, D] and lse [Hq, Tq]; empty: they have a batch.
        """

    @q_rows.setter
    def q_rows(self, value: Sequence[int], /) -> None: ...
    @property
    def q_total(self) -> int:
        """Tq, rows of packed q."""

    @q_total.setter
    def q_total(self, value: int, /) -> None: ...
    @property
    def kv_rows(self) -> Sequence[int]:
        """
        First row of each sequence in packed k and v [Hkv, Tk, D]; empty: they have a batch.
        """

    @kv_rows.setter
    def kv_rows(self, value: Sequence[int], /) -> None: ...
    @property
    def kv_total(self) -> int:
        """Tk, rows of packed k and v."""

    @kv_total.setter
    def kv_total(self, value: int, /) -> None: ...
    @property
    def pages(self) -> PageTable | None:
        """
        Where k and v [n_pages, Hkv, page_len, D] are in pages; S is the most slots of a sequence.
        """

    @pages.setter
    def pages(self, value: PageTable | None, /) -> None: ...
    @property
    def out_f32(self) -> bool:
        """out is f32 whatever q's dtype is."""

    @out_f32.setter
    def out_f32(self, value: bool, /) -> None: ...
    @property
    def return_lse(self) -> bool:
        """Write the log of the softmax denominators, f32 [B, Hq, L]."""

    @return_lse.setter
    def return_lse(self, value: bool, /) -> None: ...
    @property
    def q(self) -> TensorLayout:
        """Of q; packed unless given."""

    @q.setter
    def q(self, value: TensorLayout, /) -> None: ...
    @property
    def k(self) -> TensorLayout:
        """Of k; packed unless given."""

    @k.setter
    def k(self, value: TensorLayout, /) -> None: ...
    @property
    def v(self) -> TensorLayout:
        """Of v; packed unless given."""

    @v.setter
    def v(self, value: TensorLayout, /) -> None: ...
    @property
    def out(self) -> TensorLayout:
        """Of out; packed unless given."""

    @out.setter
    def out(self, value: TensorLayout, /) -> None: ...
    @property
    def kernel(self) -> str:
        """A kernel family to force; empty: the planner's choice."""

    @kernel.setter
    def kernel(self, value: str, /) -> None: ...
    def __repr__(self) -> str: ...
    def set_packed_layouts(self) -> None:
        """
        Gives q, k, v and out the layouts of packed row-major tensors of the shape.
        """

class SdpaOperands:
    """Memory of a problem. A tensor without elements needs none."""

    def __init__(
        self,
        *,
        q: Buffer | None = None,
        k: Buffer | None = None,
        v: Buffer | None = None,
        out: Buffer | None = None,
        lse: Buffer | None = None,
        mask: Buffer | None = None,
        sinks: Buffer | None = None,
        alibi_slopes: Buffer | None = None,
        block_table: Buffer | None = None,
    ) -> None: ...
    @property
    def q(self) -> Buffer | None:
        """Read."""

    @q.setter
    def q(self, value: Buffer | None, /) -> None: ...
    @property
    def k(self) -> Buffer | None:
        """Read."""

    @k.setter
    def k(self, value: Buffer | None, /) -> None: ...
    @property
    def v(self) -> Buffer | None:
        """Read."""

    @v.setter
    def v(self, value: Buffer | None, /) -> None: ...
    @property
    def out(self) -> Buffer | None:
        """Written."""

    @out.setter
    def out(self, value: Buffer | None, /) -> None: ...
    @property
    def lse(self) -> Buffer | None:
        """Written where the problem returns lse."""

    @lse.setter
    def lse(self, value: Buffer | None, /) -> None: ...
    @property
    def mask(self) -> Buffer | None:
        """Read where the problem has a mask."""

    @mask.setter
    def mask(self, value: Buffer | None, /) -> None: ...
    @property
    def sinks(self) -> Buffer | None:
        """Read where the problem has sinks."""

    @sinks.setter
    def sinks(self, value: Buffer | None, /) -> None: ...
    @property
    def alibi_slopes(self) -> Buffer | None:
        """Read where the problem has slopes."""

    @alibi_slopes.setter
    def alibi_slopes(self, value: Buffer | None, /) -> None: ...
    @property
    def block_table(self) -> Buffer | None:
        """Page numbers, read where the problem has pages."""

    @block_table.setter
    def block_table(self, value: Buffer | None, /) -> None: ...
    def __repr__(self) -> str: ...

class GraphNode:
    """What `Graph.nodes` tells of one node."""

    @property
    def index(self) -> int:
        """Its place in order of encoding."""

    @property
    def barrier(self) -> bool:
        """Whether it is a barrier placed by hand."""

    @property
    def kind(self) -> OpKind:
        """OpKind; `other` for a barrier."""

    @property
    def label(self) -> str:
        """Function or operation name; "barrier"."""

    @property
    def dispatches(self) -> int:
        """That a replay encodes now."""

    @property
    def declared(self) -> bool:
        """Whether reads and writes are declared."""

    @property
    def kv_seq_len(self) -> int | None:
        """Of an sdpa node, else None."""

    @property
    def kv_capacity(self) -> int | None:
        """Of an sdpa node, else None."""

    def __repr__(self) -> str: ...

class Graph:
    """
    A recorded sequence of encodes that can be reordered, updated and replayed. Safe from any thread.
    """

    @property
    def nodes(self) -> list[GraphNode]:
        """What each node is, in order of encoding."""

    def reorder(self) -> int:
        """
        Moves rms_norm, elem_mul and elem_add nodes with declared ranges so that a replay needs fewer
        barriers; every other node is a fence. Returns how many nodes moved.
        """

    def replay(self, encoder: CommandEncoder) -> None:
        """
        Encodes every node; the encoder's hazard tracker decides on barriers. May be repeated.
        """

    def visibility(self, node: GraphNode | int) -> Visibility:
        """What the queries of an sdpa node see."""

    def update(
        self,
        node: GraphNode | int,
        *,
        kv_seq_len: int = ...,
        causal: bool = ...,
        window: int | tuple[int | None, int | None] | None = ...,
        q_start: int | Sequence[int] | Array | None = ...,
        query_lengths: int | Sequence[int] | Array | None = ...,
        kv_lengths: int | Sequence[int] | Array = ...,
        kv_starts: int | Sequence[int] | Array = ...,
        key_offset: int = ...,
        key_stride: int = ...,
    ) -> None:
        """
        Plans an sdpa node, given as one of `nodes` or by its index, anew for other lengths, starts or
        windows, in sdpa()'s own terms; what is not given stays. kv_seq_len is one length for all
        sequences, 1 to the recorded kv_capacity.

        InvalidArgument, and nothing changes, for any other node or what the problem does not take.
        """

class SdpaParams:
    """
    One attention problem of an engine: packed row-major q and output
    [batch, n_heads, seq_len, head_dim], k and v [batch, n_kv_heads, kv_capacity, head_dim].
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        seq_len: int,
        kv_seq_len: int,
        scale: float = 1.0,
        kv_capacity: int = 0,
        do_causal: bool = True,
    ) -> None: ...
    @property
    def n_heads(self) -> int:
        """Hq, a multiple of n_kv_heads."""

    @n_heads.setter
    def n_heads(self, value: int, /) -> None: ...
    @property
    def n_kv_heads(self) -> int:
        """Hkv."""

    @n_kv_heads.setter
    def n_kv_heads(self, value: int, /) -> None: ...
    @property
    def head_dim(self) -> int:
        """D."""

    @head_dim.setter
    def head_dim(self, value: int, /) -> None: ...
    @property
    def seq_len(self) -> int:
        """L, queries a sequence."""

    @seq_len.setter
    def seq_len(self, value: int, /) -> None: ...
    @property
    def kv_seq_len(self) -> int:
        """Keys in use."""

    @kv_seq_len.setter
    def kv_seq_len(self, value: int, /) -> None: ...
    @property
    def kv_capacity(self) -> int:
        """Rows of k and v a head; 0 means kv_seq_len."""

    @kv_capacity.setter
    def kv_capacity(self, value: int, /) -> None: ...
    @property
    def scale(self) -> float:
        """Of the scores."""

    @scale.setter
    def scale(self, value: float, /) -> None: ...
    @property
    def do_causal(self) -> bool:
        """
        Query i stands at kv_seq_len - seq_len + i (signed) and sees keys up to there.
        """

    @do_causal.setter
    def do_causal(self, value: bool, /) -> None: ...
    def validate(self) -> None:
        """InvalidArgument, naming the field, unless every device could run it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy and pickle."""

    def __repr__(self) -> str: ...

@overload
def encode_sdpa(
    encoder: CommandEncoder,
    registry: KernelRegistry,
    device: Device,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    output: Buffer,
    params: SdpaParams,
    batch_size: int,
) -> None:
    """
    Validates, plans and records attention; the caller commits.

    q and output [batch_size, n_heads, seq_len, head_dim], k and v [batch_size, n_kv_heads, kv_capacity,
    head_dim], packed row-major, all f32, f16 or bf16. Nothing is recorded where a check fails.
    """

@overload
def encode_sdpa(
    encoder: CommandEncoder,
    registry: KernelRegistry,
    device: Device,
    operands: SdpaOperands,
    problem: SdpaProblem,
) -> None:
    """
    The same with layouts, lengths, lse and every feature. The memory stays alive until the work is
    done.
    """

@overload
def sdpa(
    q: ArrayT,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    kv_starts: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: Literal[False] = False,
    device: Device | str | None = None,
) -> ArrayT:
    """
    softmax(transform(q k^T * scale)) v, with grouped queries; waits for the result.

    Arguments
      q             [B, Hq, L, D], f32, f16 or bf16; NumPy or anything with __dlpack__ (torch, JAX,
                    MLX). A NumPy uint16 array holds bfloat16 bits; ml_dtypes.bfloat16 works too.
      k             [B, Hkv, S, D], of q's dtype. Query head h reads KV head h // (Hq // Hkv). q, k and
                    v have any strides, as long as the last dimension is contiguous.
      v             [B, Hkv, S, Dv], of q's dtype.
      causal        Query i of a sequence stands at position q_start + i and sees no key behind it.
      q_start       An int, or one a sequence; may be negative. Default: kv_len less the queries in use,
                    so that the last query meets the last key. torch's is_causal is q_start=0.
      scale         Of q . k, finite; 0 and negative are allowed. Default: 1 / sqrt(D).
      mask          bool (True = attend), or f32, f16 or bf16 numbers that are added to the scores,
                    whatever q's dtype is. Broadcast to [B, Hq, L, S] from the right; any strides, never
                    copied. -inf hides; a NaN at a visible key gives a NaN row.
      window        An int W: W keys with the query's own, none behind it. Or a pair (left, right): keys
                    at most left positions before the query's and right behind it, None or -1 for
                    unlimited.
      softcap       c, above 0 and finite: a score x becomes c * tanh(x / c), before ALiBi and mask.
      sinks         [Hq] or a scalar array, f32 or q's dtype, finite or -inf: one more score of every
                    row, which has no value; lse counts it.
      alibi_slopes  [Hq] or [B, Hq], f32, finite: slope * |position of the query - position of the key|
                    is taken off the scores.
      kv_lengths    Keys in use, 0 to S: an int, or one a sequence. Default: S. Slots past them never
                    matter, whatever bits they hold.
      kv_starts     First slot in use, 0 to S (left padding): an int, or one a sequence. Default: 0.
      query_lengths Queries in use, 0 to L: an int, or one a sequence. Default: L. Rows past them see no
                    key and cost nothing. Where they differ, the kernel goes by the largest.
      key_offset    Slot j stands at position key_offset + j * key_stride (a shard of the keys); other
                    than 0 and 1 they want a given q_start.
      key_stride    See key_offset; 1 or more.
      out           [B, Hq, L, Dv] to write into, of q's dtype or f32; writable, and overlapping neither
                    itself nor an input.
      return_lse    Also return the natural log of the softmax denominators, f32 [B, Hq, L].
      device        A Device, "cpu", "metal" or "auto". Default: where the arrays are. On Metal, host
                    arrays are copied in and out.

    The order of what happens to a score: scale, softcap, ALiBi, mask; then softmax over the keys that
    causal, window, lengths, starts and mask leave, with the sink beside them.

    Returns out, or (out, lse), as new arrays of q's framework unless `out` is given; the axes of out lie
    in memory in the order of q's. A row that sees no key is 0, its lse -inf or its sink; B, L and S may
    be 0. What a row does not see never reaches it, whatever bits it holds. Inputs are neither written
    nor copied (except onto Metal).

    Errors: InvalidArgument (shapes, lengths, strides, overlap), InvalidType, UnsupportedDType,
    Unsupported (memory of other devices; arrays that are more than their memory: that require gradients
    while grad mode is on, have a tangent, are traced, masked or lazily negated), BufferAllocationError.
    """

@overload
def sdpa(
    q: ArrayT,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    kv_starts: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: Literal[True],
    device: Device | str | None = None,
) -> tuple[ArrayT, ArrayT]: ...
@overload
def sdpa(
    q: ArrayT,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    kv_starts: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: bool,
    device: Device | str | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
def plan(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    kv_starts: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: Array | None = None,
    return_lse: bool = False,
    device: Device | str | None = None,
) -> str:
    """
    What sdpa() would do with these arguments, in words: kernels, grids, scratch, copies. Nothing runs.

    Errors: those of sdpa().
    """

@overload
def sdpa_varlen(
    q: ArrayT,
    k: Array,
    v: Array,
    cu_seqlens_q: Indices,
    cu_seqlens_k: Indices,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: Literal[False] = False,
    device: Device | str | None = None,
) -> ArrayT:
    """
    sdpa() of B sequences of any lengths, whose rows stand one behind the other in q, k and v. The rows
    of a sequence have the bits that sdpa() gives it alone.

    Arguments
      q             [Tq, Hq, D], f32, f16 or bf16: rows of all sequences, one behind the other.
      k             [Tk, Hkv, D], of q's dtype; any strides but the last dimension's.
      v             [Tk, Hkv, Dv], of q's dtype.
      cu_seqlens_q  [B + 1], int32 or int64: sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1]
                    of q. From 0, not falling; rows past the last are of no sequence.
      cu_seqlens_k  The same of k and v. Sequences without queries or keys are fine.
      causal        Query i of a sequence stands at position q_start + i and sees no key behind it.
      q_start       An int, or one a sequence; may be negative. Default: kv_len less the queries in use,
                    so that the last query meets the last key. torch's is_causal is q_start=0.
      scale         Of q . k, finite; 0 and negative are allowed. Default: 1 / sqrt(D).
      mask          As sdpa() takes it, broadcast to [Hq, Tq, M] from the right: column j is slot j of
                    the row's sequence, M at least the longest kv_length.
      window        An int W: W keys with the query's own, none behind it. Or a pair (left, right): keys
                    at most left positions before the query's and right behind it, None or -1 for
                    unlimited.
      softcap       c, above 0 and finite: a score x becomes c * tanh(x / c), before ALiBi and mask.
      sinks         [Hq] or a scalar array, f32 or q's dtype, finite or -inf: one more score of every
                    row, which has no value; lse counts it.
      alibi_slopes  [Hq] or [B, Hq], f32, finite: slope * |position of the query - position of the key|
                    is taken off the scores.
      kv_lengths    Keys in use of each sequence: an int, or int32 or int64 [B]. Default: all.
      query_lengths Queries in use of each sequence, as kv_lengths; later rows see no key.
      key_offset    Slot j stands at position key_offset + j * key_stride (a shard of the keys); other
                    than 0 and 1 they want a given q_start.
      key_stride    See key_offset; 1 or more.
      out           [Tq, Hq, Dv] to write into, as sdpa() takes it; rows of no sequence stay as they
                    are.
      return_lse    Also return the natural log of the softmax denominators, f32 [Hq, Tq].
      device        A Device, "cpu", "metal" or "auto". Default: where the arrays are. On Metal, host
                    arrays are copied in and out.

    Returns out [Tq, Hq, Dv], or (out, lse [Hq, Tq]), as sdpa() does. Rows of no sequence are 0 with lse
    -inf in new arrays.

    Errors: those of sdpa(); cu_seqlens that do not begin at 0, that fall, or that end past the rows.
    """

@overload
def sdpa_varlen(
    q: ArrayT,
    k: Array,
    v: Array,
    cu_seqlens_q: Indices,
    cu_seqlens_k: Indices,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: Literal[True],
    device: Device | str | None = None,
) -> tuple[ArrayT, ArrayT]: ...
@overload
def sdpa_varlen(
    q: ArrayT,
    k: Array,
    v: Array,
    cu_seqlens_q: Indices,
    cu_seqlens_k: Indices,
    *,
    causal: bool = False,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: int | Sequence[int] | Array | None = None,
    query_lengths: int | Sequence[int] | Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    out: ArrayT | None = None,
    return_lse: bool,
    device: Device | str | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
@overload
def sdpa_paged(
    q: ArrayT,
    k_pages: Array,
    v_pages: Array,
    block_table: Array | tuple[Indices, Array],
    kv_lengths: Indices,
    *,
    cu_seqlens_q: Indices | None = None,
    causal: bool = True,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    layout: Literal["NHD", "HND"] = "NHD",
    check_indices: bool = True,
    out: ArrayT | None = None,
    return_lse: Literal[False] = False,
    device: Device | str | None = None,
) -> ArrayT:
    """
    sdpa() on keys and values that lie in pages of a cache, which a block table names. The rows of a
    sequence have the bits that sdpa() gives them on its keys gathered; nothing is gathered.

    Arguments
      q             [B, Hq, L, D]; with cu_seqlens_q [Tq, Hq, D]. f32, f16 or bf16.
      k_pages       [n_pages, page, Hkv, D], of q's dtype, or [n_pages, Hkv, page, D] with layout="HND".
                    Any page size, any strides but the last dimension's: K and V may be views of one
                    tensor.
      v_pages       [n_pages, page, Hkv, Dv] or [n_pages, Hkv, page, Dv], of q's dtype.
      block_table   [B, max_blocks], int32 or int64: slot j of sequence b is row j % page of page
                    block_table[b, j // page]. Or (indptr, indices): its pages are indices[indptr[b] :
                    indptr[b + 1]]. A page may serve several sequences; entries that no query needs are
                    not looked at.
      kv_lengths    [B], int32 or int64: slots in use of each sequence.
      cu_seqlens_q  [B + 1], int32 or int64, as sdpa_varlen() takes it: decode rows, chunks and whole
                    prompts in one call.
      causal        Query i of a sequence stands at position q_start + i and sees no key behind it.
      q_start       An int, or one a sequence; may be negative. Default: kv_len less the queries in use,
                    so that the last query meets the last key. torch's is_causal is q_start=0.
      scale         Of q . k, finite; 0 and negative are allowed. Default: 1 / sqrt(D).
      mask          As sdpa() takes it, broadcast to [B, Hq, L, M], or to [Hq, Tq, M] with cu_seqlens_q:
                    column j is slot j of the row's sequence, M at least the longest kv_length.
      window        An int W: W keys with the query's own, none behind it. Or a pair (left, right): keys
                    at most left positions before the query's and right behind it, None or -1 for
                    unlimited.
      softcap       c, above 0 and finite: a score x becomes c * tanh(x / c), before ALiBi and mask.
      sinks         [Hq] or a scalar array, f32 or q's dtype, finite or -inf: one more score of every
                    row, which has no value; lse counts it.
      alibi_slopes  [Hq] or [B, Hq], f32, finite: slope * |position of the query - position of the key|
                    is taken off the scores.
      key_offset    Slot j stands at position key_offset + j * key_stride (a shard of the keys); other
                    than 0 and 1 they want a given q_start.
      key_stride    See key_offset; 1 or more.
      layout        Axes of a page: "NHD" (slots, heads) or "HND" (heads, slots).
      check_indices Whether page numbers are checked. Without, one out of range reads other memory.
      out           [B, Hq, L, Dv] or [Tq, Hq, Dv] to write into, as sdpa_varlen() takes it.
      return_lse    Also return the natural log of the softmax denominators, f32 [B, Hq, L] or [Hq, Tq].
      device        A Device, "cpu", "metal" or "auto". Default: where the arrays are. On Metal, host
                    arrays are copied in and out.

    Returns out as q is shaped, or (out, lse [B, Hq, L] or [Hq, Tq]), as sdpa() does. Page numbers are
    read while the call runs; int32 and int64 alike, on the host or where q is.

    Errors: those of sdpa(); page numbers out of range, unless check_indices is False; kv_lengths over
    what the block table reaches.
    """

@overload
def sdpa_paged(
    q: ArrayT,
    k_pages: Array,
    v_pages: Array,
    block_table: Array | tuple[Indices, Array],
    kv_lengths: Indices,
    *,
    cu_seqlens_q: Indices | None = None,
    causal: bool = True,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    layout: Literal["NHD", "HND"] = "NHD",
    check_indices: bool = True,
    out: ArrayT | None = None,
    return_lse: Literal[True],
    device: Device | str | None = None,
) -> tuple[ArrayT, ArrayT]: ...
@overload
def sdpa_paged(
    q: ArrayT,
    k_pages: Array,
    v_pages: Array,
    block_table: Array | tuple[Indices, Array],
    kv_lengths: Indices,
    *,
    cu_seqlens_q: Indices | None = None,
    causal: bool = True,
    q_start: int | Sequence[int] | Array | None = None,
    scale: float | None = None,
    mask: Array | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    key_offset: int = 0,
    key_stride: int = 1,
    layout: Literal["NHD", "HND"] = "NHD",
    check_indices: bool = True,
    out: ArrayT | None = None,
    return_lse: bool,
    device: Device | str | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]: ...

class Prepared:
    """
    A call that is checked and planned once and run on the arrays of many layers; from prepare().
    Safe from any thread; a run that is under way keeps the schedule that it began with. Of two update() at
    once, one may undo what the other changed.
    """

    def run(
        self,
        q: ArrayT,
        k: Array,
        v: Array,
        out: ArrayT | None = None,
        *,
        mask: Array | None = None,
        sinks: Array | None = None,
        alibi_slopes: Array | None = None,
        scratch: Buffer | None = None,
    ) -> Any:
        """
        The prepared call on these arrays; waits. Returns what that call does, with its bits.

        Dtypes, shapes and strides are those prepared for; so is `out`, where one was given then.
        mask, sinks and alibi_slopes: this layer's; default: those prepared with. `scratch`: a Buffer of
        scratch_bytes or more that nothing else uses meanwhile.

        Errors: InvalidArgument for arrays that differ from those prepared for; those of the call.
        """

    def encode(
        self,
        encoder: CommandEncoder,
        registry: KernelRegistry,
        operands: SdpaOperands,
        *,
        scratch: Buffer | None = None,
    ) -> None:
        """
        Records the call on Buffers laid out like the arrays prepared for; in a capture it is a node as
        encode_sdpa() makes it. Without a block_table in `operands` the prepared one is read.
        """

    def update(
        self,
        *,
        kv_lengths: int | Sequence[int] | Array = ...,
        block_table: Array = ...,
        q_start: int | Sequence[int] | Array | None = ...,
        causal: bool = ...,
        window: int | tuple[int | None, int | None] | None = ...,
        kv_starts: int | Sequence[int] | Array = ...,
        query_lengths: int | Sequence[int] | Array | None = ...,
        key_offset: int = ...,
        key_stride: int = ...,
    ) -> None:
        """
        Moves to the next step: plans anew for other lengths, starts or windows, within kv_capacity; what
        is not given stays. block_table: another array of the same dtype, shape and strides. Without one the
        prepared array, which may have been written to, is checked again.

        InvalidArgument, and nothing changes, for what the call does not take.
        """

    @property
    def kv_capacity(self) -> int:
        """Keys that update() may bring a sequence to."""

    @property
    def scratch_bytes(self) -> int:
        """
        Bytes of a `scratch` that are enough until the next update(), which may want more: read it again then.
        0: none is used.
        """

    @property
    def problem(self) -> SdpaProblem:
        """A copy of the problem as it is now."""

    @property
    def plan(self) -> str:
        """What runs, in words."""

    def __repr__(self) -> str: ...

def prepare(
    call: Literal["sdpa", "sdpa_varlen", "sdpa_paged"],
    /,
    *arguments: Any,
    kv_capacity: int | None = None,
    **options: Any,
) -> Prepared:
    """
    Checks and plans a call once, for all layers of an engine's step. Nothing runs.

    `arguments` and `options` are those of the call that `call` names. Of q, k, v and out only dtypes,
    shapes and strides are kept; masks, sinks, slopes and the block table stay in use. kv_capacity: keys
    that update() may bring a sequence to. Default: as many as k, or the block table, reaches, and the
    mask.

        step = prepare("sdpa_paged", q, k_pages, v_pages, block_table, kv_lengths)
        for layer in layers:
            step.run(layer.q, layer.k_pages, layer.v_pages, layer.out)
        step.update(kv_lengths=kv_lengths + 1)

    Page numbers are checked here and in update(), not in run(). On Metal a table in host memory is
    copied then: what is written into it afterwards counts from the next update().

    Errors: those of the call.
    """

def merge_states(outs: ArrayT, lses: Array, out: Array | None = None) -> tuple[ArrayT, ArrayT]:
    """metal_sdpa.merge_states of states that are stacked already."""

def write_kv(
    k_new: Array,
    v_new: Array,
    k_cache: Array,
    v_cache: Array,
    slots: NDArray[Any],
    heads_first: bool,
    check_slots: bool,
) -> None:
    """metal_sdpa.write_kv with slots as int32 [T]."""

def parameters(call: str = "sdpa") -> list[tuple[str, str, str, str, str]]:
    """
    The arguments of sdpa(), sdpa_varlen() or sdpa_paged(): (name, type, default, feature of supported_features(), meaning).
    """

def unsupported_reason(
    device: Device | str,
    dtype: DTypeLike,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    value_dim: int,
    features: list[str],
) -> str:
    """Why the device does not run such a problem; empty where it does."""

def supported_features() -> list[tuple[str, str, str]]:
    """
    The table behind supports(): (feature, why not on the CPU, why not on Metal); empty text: supported.
    """
