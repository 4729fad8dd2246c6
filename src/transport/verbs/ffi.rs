//! The part of libibverbs that this transport uses, declared by hand and loaded at run time.
//!
//! The declarations follow the stable ABI of `libibverbs.so.1` (rdma-core's `verbs.h`, symbol versions IBVERBS_1.0 and 1.1), whose layouts
//! are pinned below. Posting and polling are not exported: `verbs.h` calls them through the context's table, and so does [`post_send`].

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};
use std::sync::OnceLock;

/// Opaque: a device of the list.
#[repr(C)]
pub struct Device {
    private: [u8; 0],
}

/// Opaque: a protection domain.
#[repr(C)]
pub struct Domain {
    private: [u8; 0],
}

type Unused = Option<unsafe extern "C" fn()>;

/// `ibv_context_ops`: what `verbs.h` calls without an exported symbol.
#[repr(C)]
pub struct ContextOps {
    before_poll: [Unused; 11],
    poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    between: [Unused; 12],
    post_send: unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    after_send: [Unused; 6],
}

/// `ibv_context`, up to what this transport reads.
#[repr(C)]
pub struct Context {
    device: *mut Device,
    ops: ContextOps,
    cmd_fd: c_int,
    async_fd: c_int,
    num_comp_vectors: c_int,
    mutex: libc::pthread_mutex_t,
    abi_compat: *mut c_void,
}

/// The end of `verbs_context`, which lies right before the context where `abi_compat` is all ones.
#[repr(C)]
struct ExtendedTail {
    query_device_ex: Option<unsafe extern "C" fn(*mut Context, *const c_void, *mut DeviceAttrEx, usize) -> c_int>,
    between: [usize; 11],
    size: usize,
}

#[repr(C)]
pub struct CompletionChannel {
    context: *mut Context,
    pub fd: c_int,
    refcnt: c_int,
}

/// `ibv_cq`, up to what this transport reads.
#[repr(C)]
pub struct CompletionQueue {
    context: *mut Context,
}

/// `ibv_qp`, up to what this transport reads.
#[repr(C)]
pub struct QueuePair {
    context: *mut Context,
    qp_context: *mut c_void,
    pd: *mut Domain,
    send_cq: *mut CompletionQueue,
    recv_cq: *mut CompletionQueue,
    srq: *mut c_void,
    handle: u32,
    pub number: u32,
}

#[repr(C)]
pub struct MemoryRegion {
    context: *mut Context,
    pd: *mut Domain,
    address: *mut c_void,
    length: usize,
    handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceAttr {
    fw_ver: [c_char; 64],
    node_guid: u64,
    sys_image_guid: u64,
    pub max_mr_size: u64,
    page_size_cap: u64,
    vendor_id: u32,
    vendor_part_id: u32,
    hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    device_cap_flags: c_uint,
    max_sge: c_int,
    max_sge_rd: c_int,
    max_cq: c_int,
    pub max_cqe: c_int,
    max_mr: c_int,
    max_pd: c_int,
    /// READs that a queue pair answers at once.
    pub max_qp_rd_atom: c_int,
    max_ee_rd_atom: c_int,
    max_res_rd_atom: c_int,
    /// READs that a queue pair has on their way at once.
    pub max_qp_init_rd_atom: c_int,
    rest: [c_int; 16],
    max_pkeys: u16,
    local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

#[repr(C)]
pub struct DeviceAttrEx {
    original: DeviceAttr,
    comp_mask: u32,
    odp_general: u64,
    pub odp_rc: u32,
    odp_uc_ud: [u32; 2],
    rest: [u64; 17],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PortAttr {
    pub state: c_int,
    max_mtu: c_int,
    pub active_mtu: c_int,
    pub gid_tbl_len: c_int,
    port_cap_flags: u32,
    pub max_msg_sz: u32,
    bad_pkey_cntr: u32,
    qkey_viol_cntr: u32,
    pkey_tbl_len: u16,
    pub lid: u16,
    sm_lid: u16,
    between: [u8; 8],
    pub link_layer: u8,
    flags: u8,
    port_cap_flags2: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QueuePairCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
pub struct QueuePairInit {
    pub qp_context: *mut c_void,
    pub send_cq: *mut CompletionQueue,
    pub recv_cq: *mut CompletionQueue,
    pub srq: *mut c_void,
    pub cap: QueuePairCap,
    pub qp_type: c_int,
    pub sq_sig_all: c_int,
}

/// `ibv_ah_attr`, whose GID is a union with 64-bit numbers.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct AddressVector {
    pub dgid: [u8; 16],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QueuePairAttr {
    pub qp_state: c_int,
    cur_qp_state: c_int,
    pub path_mtu: c_int,
    path_mig_state: c_int,
    qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_uint,
    cap: QueuePairCap,
    pub ah_attr: AddressVector,
    alt_ah_attr: AddressVector,
    pub pkey_index: u16,
    alt_pkey_index: u16,
    en_sqd_async_notify: u8,
    sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    alt_port_num: u8,
    alt_timeout: u8,
    rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gather {
    pub address: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `ibv_send_wr` with the fields of an RDMA operation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendRequest {
    pub wr_id: u64,
    pub next: *mut SendRequest,
    pub sg_list: *mut Gather,
    pub num_sge: c_int,
    pub opcode: c_int,
    pub send_flags: c_uint,
    imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    rest: [u64; 9],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct WorkCompletion {
    pub wr_id: u64,
    pub status: c_int,
    opcode: c_int,
    pub vendor_err: u32,
    byte_len: u32,
    imm_data: u32,
    qp_num: u32,
    src_qp: u32,
    wc_flags: c_uint,
    pkey_index: u16,
    slid: u16,
    sl: u8,
    dlid_path_bits: u8,
}

impl WorkCompletion {
    /// For [`poll_cq`] to write over.
    pub const EMPTY: Self = Self {
        wr_id: 0,
        status: 0,
        opcode: 0,
        vendor_err: 0,
        byte_len: 0,
        imm_data: 0,
        qp_num: 0,
        src_qp: 0,
        wc_flags: 0,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    };
}

// The ABI, as a C compiler lays it out on 64-bit Linux.
const _: () = {
    assert!(size_of::<ContextOps>() == 256 && size_of::<DeviceAttr>() == 232 && size_of::<DeviceAttrEx>() == 400);
    assert!(offset_of!(ContextOps, poll_cq) == 88 && offset_of!(ContextOps, post_send) == 200);
    assert!(offset_of!(DeviceAttr, max_qp) == 108 && offset_of!(DeviceAttr, max_cqe) == 132);
    assert!(offset_of!(DeviceAttr, max_qp_rd_atom) == 144 && offset_of!(DeviceAttr, max_qp_init_rd_atom) == 156);
    assert!(offset_of!(DeviceAttr, phys_port_cnt) == 227 && offset_of!(DeviceAttrEx, odp_rc) == 248);
    assert!(size_of::<PortAttr>() == 52 && offset_of!(PortAttr, lid) == 34 && offset_of!(PortAttr, link_layer) == 46);
    assert!(size_of::<QueuePairInit>() == 64 && offset_of!(QueuePairInit, qp_type) == 52);
    assert!(size_of::<AddressVector>() == 32 && offset_of!(AddressVector, dlid) == 24);
    assert!(size_of::<QueuePairAttr>() == 144 && offset_of!(QueuePairAttr, ah_attr) == 56);
    assert!(offset_of!(QueuePairAttr, pkey_index) == 120 && offset_of!(QueuePairAttr, rnr_retry) == 132);
    assert!(size_of::<SendRequest>() == 128 && offset_of!(SendRequest, remote_addr) == 40);
    assert!(size_of::<Gather>() == 16 && size_of::<WorkCompletion>() == 48);
    assert!(offset_of!(QueuePair, number) == 52 && offset_of!(MemoryRegion, lkey) == 36);
    assert!(offset_of!(CompletionChannel, fd) == 8 && size_of::<ExtendedTail>() == 104 && size_of::<Context>() == 328);
};

pub const QPT_RC: c_int = 2;
pub const WR_RDMA_READ: c_int = 4;
pub const SEND_SIGNALED: c_uint = 2;
pub const ACCESS_LOCAL_WRITE: c_int = 1;
pub const ACCESS_REMOTE_READ: c_int = 1 << 2;
pub const ACCESS_ON_DEMAND: c_int = 1 << 6;
pub const ODP_SUPPORT_READ: u32 = 1 << 3;
pub const PORT_ACTIVE: c_int = 4;
pub const LINK_LAYER_ETHERNET: u8 = 2;
pub const QPS_INIT: c_int = 1;
pub const QPS_RTR: c_int = 2;
pub const QPS_RTS: c_int = 3;
pub const QPS_ERR: c_int = 6;
pub const QP_STATE: c_int = 1;
pub const QP_ACCESS_FLAGS: c_int = 1 << 3;
pub const QP_PKEY_INDEX: c_int = 1 << 4;
pub const QP_PORT: c_int = 1 << 5;
pub const QP_AV: c_int = 1 << 7;
pub const QP_PATH_MTU: c_int = 1 << 8;
pub const QP_TIMEOUT: c_int = 1 << 9;
pub const QP_RETRY_CNT: c_int = 1 << 10;
pub const QP_RNR_RETRY: c_int = 1 << 11;
pub const QP_RQ_PSN: c_int = 1 << 12;
pub const QP_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub const QP_MIN_RNR_TIMER: c_int = 1 << 15;
pub const QP_SQ_PSN: c_int = 1 << 16;
pub const QP_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub const QP_DEST_QPN: c_int = 1 << 20;

macro_rules! library {
    ($($field:ident: fn($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// libibverbs's exported functions, under their names without `ibv_`.
        pub struct Library {
            $(pub $field: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
        }

        impl Library {
            /// # Safety
            /// The handle is of a loaded libibverbs, which is never unloaded.
            unsafe fn resolve(handle: *mut c_void) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        let name = concat!("ibv_", stringify!($field), "\0");
                        // SAFETY: the handle is good, and the name ends in a null byte.
                        let symbol = unsafe { libc::dlsym(handle, name.as_ptr().cast()) };
                        if symbol.is_null() {
                            return Err(format!("libibverbs.so.1 has no {}: it is of another kind than rdma-core's", &name[..name.len() - 1]));
                        }
                        // SAFETY: rdma-core declares the function with this signature, and has kept it since IBVERBS_1.1.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $answer)?>(symbol) }
                    },)*
                })
            }
        }
    };
}

library! {
    fork_init: fn() -> c_int;
    get_device_list: fn(*mut c_int) -> *mut *mut Device;
    free_device_list: fn(*mut *mut Device);
    get_device_name: fn(*mut Device) -> *const c_char;
    open_device: fn(*mut Device) -> *mut Context;
    close_device: fn(*mut Context) -> c_int;
    query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    query_gid: fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
    alloc_pd: fn(*mut Context) -> *mut Domain;
    dealloc_pd: fn(*mut Domain) -> c_int;
    reg_mr: fn(*mut Domain, *mut c_void, usize, c_int) -> *mut MemoryRegion;
    dereg_mr: fn(*mut MemoryRegion) -> c_int;
    create_comp_channel: fn(*mut Context) -> *mut CompletionChannel;
    destroy_comp_channel: fn(*mut CompletionChannel) -> c_int;
    create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
    destroy_cq: fn(*mut CompletionQueue) -> c_int;
    get_cq_event: fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut *mut c_void) -> c_int;
    ack_cq_events: fn(*mut CompletionQueue, c_uint);
    create_qp: fn(*mut Domain, *mut QueuePairInit) -> *mut QueuePair;
    modify_qp: fn(*mut QueuePair, *mut QueuePairAttr, c_int) -> c_int;
    destroy_qp: fn(*mut QueuePair) -> c_int;
}

/// The library, loaded once for the process and made ready for forks before anything can be registered.
///
/// `ibv_fork_init` keeps registered pages out of forked children, where the kernel does not already copy pinned pages at the fork
/// (Linux 5.12 and later do, and then the call changes nothing). It must come before the first registration of the process, whoever makes it.
/// On older kernels reserved huge pages need RDMAV_HUGEPAGES_SAFE=1 in the environment besides (ibv_fork_init(3)).
pub fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(String::clone)
}

fn load() -> Result<Library, String> {
    // SAFETY: a C string; the library's initialisers are rdma-core's own.
    let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failed dlopen this is null or a C string that lives until the next call of this thread.
        let cause = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "no cause given".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        return Err(format!(
            "cannot load libibverbs: {cause}; install rdma-core (Debian: libibverbs1 ibverbs-providers), or use another transport"
        ));
    }
    // SAFETY: just loaded, and never unloaded.
    let library = unsafe { Library::resolve(handle) }?;
    // SAFETY: no argument; nothing of this process has been registered through this library by us yet.
    match unsafe { (library.fork_init)() } {
        0 => Ok(library),
        errno => Err(format!(
            "libibverbs cannot be made safe for forks: {}; open the transport before anything else uses libibverbs",
            std::io::Error::from_raw_os_error(errno)
        )),
    }
}

/// `ibv_post_send`: posts a list; on failure also the first request that was not posted.
///
/// # Safety
/// The queue pair lives; the list and its gather entries are valid; what they name may be written by the device until completion.
pub unsafe fn post_send(qp: *mut QueuePair, list: *mut SendRequest) -> Result<(), (c_int, *const SendRequest)> {
    let mut bad = std::ptr::null_mut();
    // SAFETY: by contract; the context's table is filled by the provider.
    match unsafe { ((*(*qp).context).ops.post_send)(qp, list, &mut bad) } {
        0 => Ok(()),
        errno => Err((errno, bad.cast_const())),
    }
}

/// `ibv_poll_cq`: the completions that were there, or an error of the queue.
///
/// # Safety
/// The queue lives, and nobody else polls it.
pub unsafe fn poll_cq(cq: *mut CompletionQueue, into: &mut [WorkCompletion]) -> Result<usize, ()> {
    // SAFETY: by contract; the slice has room for as many as are asked for.
    let found = unsafe { ((*(*cq).context).ops.poll_cq)(cq, into.len() as c_int, into.as_mut_ptr()) };
    usize::try_from(found).map_err(drop)
}

/// `ibv_req_notify_cq`: the next completion makes an event.
///
/// # Safety
/// The queue lives.
pub unsafe fn request_event(cq: *mut CompletionQueue) -> Result<(), c_int> {
    // SAFETY: by contract.
    match unsafe { ((*(*cq).context).ops.req_notify_cq)(cq, 0) } {
        0 => Ok(()),
        errno => Err(errno),
    }
}

/// What reliable connections can do with memory that is paged on demand; 0 where the device or the library knows nothing of it.
///
/// # Safety
/// The context lives.
pub unsafe fn on_demand_paging(context: *mut Context) -> u32 {
    // SAFETY: a zeroed structure is a valid empty answer.
    let mut attr: DeviceAttrEx = unsafe { std::mem::zeroed() };
    // SAFETY: all ones in `abi_compat` say that a `verbs_context` ends with this context; its `size` says how much of it is there.
    let answered = unsafe {
        if (*context).abi_compat as usize != usize::MAX {
            return 0;
        }
        let tail = context.cast::<u8>().sub(size_of::<ExtendedTail>()).cast::<ExtendedTail>();
        match (*tail).query_device_ex {
            Some(query) if (*tail).size >= size_of::<ExtendedTail>() + size_of::<Context>() => {
                query(context, std::ptr::null(), &mut attr, size_of::<DeviceAttrEx>())
            }
            _ => return 0,
        }
    };
    if answered == 0 { attr.odp_rc } else { 0 }
}

/// `ibv_wc_status`, as far as it is told apart.
pub const STATUS_SUCCESS: c_int = 0;
pub const STATUS_REMOTE_ACCESS: c_int = 10;
pub const STATUS_RETRY_EXCEEDED: c_int = 12;
