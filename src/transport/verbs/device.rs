//! The opened device: which one, which port and address of it, and what it can do.

use super::counters::Counters;
use super::{failure, ffi};
use crate::error::{Error, Result};
use crate::transport::{Found, VerbsSettings};
use std::ffi::CStr;
use std::fs;
use std::net::Ipv6Addr;
use std::sync::Arc;

/// How peers reach a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAddress {
    pub gid: [u8; 16],
    pub lid: u16,
}

/// What bounds the queue pairs of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub queue_pairs: usize,
    /// Requests that a queue pair holds.
    pub requests: usize,
    /// Completions that a completion queue holds.
    pub completions: usize,
    /// READs that a queue pair of ours has on their way at once.
    pub reads_out: u8,
    /// READs of a peer that a queue pair of ours answers at once.
    pub reads_in: u8,
    /// Bytes of one READ.
    pub message_bytes: usize,
}

/// The RDMA devices of this host, as a job would find them.
///
/// # Errors
/// libibverbs cannot be loaded, or the kernel has no RDMA devices.
pub fn devices() -> Result<Vec<Found>> {
    let library = ffi::library().map_err(failure)?;
    let list = DeviceList::new(library)?;
    Ok(list.devices().iter().map(|&device| look_at(library, device)).collect())
}

fn look_at(library: &'static ffi::Library, listed: *mut ffi::Device) -> Found {
    // SAFETY: a device of the list has a name, a C string that lives as long as the list.
    let name = unsafe { CStr::from_ptr((library.get_device_name)(listed)) }.to_string_lossy().into_owned();
    // SAFETY: the device is of the list.
    let context = unsafe { (library.open_device)(listed) };
    if context.is_null() {
        let unusable = Some(format!("cannot be opened: {}", std::io::Error::last_os_error()));
        return Found { name, detail: String::new(), unusable };
    }
    let mut device = Device::new(library, name.clone(), context);
    if !device.find_active_port() {
        return Found { name, detail: String::new(), unusable: Some("no active port".into()) };
    }
    let unusable = device.take_limits().err().map(|cause| cause.to_string());
    let Limits { queue_pairs, reads_out, .. } = device.limits;
    let detail = format!("port {}, {queue_pairs} queue pairs, {reads_out} reads of each at once", device.port);
    Found { name, detail, unusable }
}

/// An opened device with its protection domain; registrations and queue pairs hold it.
pub struct Device {
    pub library: &'static ffi::Library,
    pub name: String,
    pub context: *mut ffi::Context,
    pub domain: *mut ffi::Domain,
    pub port: u8,
    pub gid_index: u8,
    /// Whether packets carry a global route: always on Ethernet.
    pub global_route: bool,
    pub address: PortAddress,
    /// The port's MTU, in InfiniBand's code (1 is 256 bytes, 5 is 4096).
    pub mtu: u8,
    pub limits: Limits,
    /// Whether memory need not be pinned to be read.
    pub pages_on_demand: bool,
    pub counters: Arc<Counters>,
    /// Whose device this is: to a forked child it is nothing.
    process: u32,
}

// SAFETY: verbs objects may be used from any thread (ibv_open_device's and ibv_reg_mr's manual pages); the pointers live until the drop.
unsafe impl Send for Device {}
// SAFETY: as above; the library locks inside.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device that the settings name, or the first with an active port.
    pub fn open(settings: &VerbsSettings) -> Result<Arc<Self>> {
        let library = ffi::library().map_err(failure)?;
        let mut device = Self::open_named(library, settings.device.as_deref())?;
        device.take_limits()?;
        device.choose_gid(settings.gid)?;
        // SAFETY: the context is open.
        device.domain = unsafe { (library.alloc_pd)(device.context) };
        if device.domain.is_null() {
            return Err(failure(format!(
                "no protection domain on {}: {}",
                device.name,
                std::io::Error::last_os_error()
            )));
        }
        // SAFETY: the context is open.
        device.pages_on_demand = unsafe { ffi::on_demand_paging(device.context) } & ffi::ODP_SUPPORT_READ != 0;
        tracing::info!(
            "transport verbs: {} port {}, GID {} ({}), lid {}, MTU {}, {} reads out and {} in at once, {}",
            device.name,
            device.port,
            device.gid_index,
            Ipv6Addr::from(device.address.gid),
            device.address.lid,
            128 << device.mtu,
            device.limits.reads_out,
            device.limits.reads_in,
            if device.pages_on_demand { "on-demand paging for files" } else { "no on-demand paging" },
        );
        Ok(Arc::new(device))
    }

    /// Whether this process opened it.
    pub fn is_ours(&self) -> bool {
        std::process::id() == self.process
    }

    fn open_named(library: &'static ffi::Library, wanted: Option<&str>) -> Result<Self> {
        let list = DeviceList::new(library)?;
        let mut seen = Vec::new();
        for &device in list.devices() {
            // SAFETY: a device of the list has a name, a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr((library.get_device_name)(device)) }.to_string_lossy().into_owned();
            if wanted.is_none_or(|wanted| wanted == name) {
                // SAFETY: the device is of the list.
                let context = unsafe { (library.open_device)(device) };
                if context.is_null() {
                    seen.push(format!("{name} (cannot be opened: {})", std::io::Error::last_os_error()));
                    continue;
                }
                let mut opened = Self::new(library, name, context);
                if opened.find_active_port() {
                    return Ok(opened);
                }
                seen.push(format!("{} (no active port)", opened.name));
            } else {
                seen.push(name);
            }
        }
        let wanted =
            wanted.map_or("no RDMA device with an active port".into(), |name| format!("no usable device {name}"));
        let seen = if seen.is_empty() { "none".into() } else { seen.join(", ") };
        Err(failure(format!(
            "{wanted} on this host; devices seen: {seen}. Load the device's driver, name one by RUDDER_VERBS_DEVICE, or use another transport"
        )))
    }

    fn new(library: &'static ffi::Library, name: String, context: *mut ffi::Context) -> Self {
        Self {
            library,
            name,
            context,
            domain: std::ptr::null_mut(),
            port: 0,
            gid_index: 0,
            global_route: false,
            address: PortAddress { gid: [0; 16], lid: 0 },
            mtu: 1,
            limits: Limits { queue_pairs: 0, requests: 0, completions: 0, reads_out: 1, reads_in: 1, message_bytes: 0 },
            pages_on_demand: false,
            counters: Arc::default(),
            process: std::process::id(),
        }
    }

    fn attributes(&self) -> Result<ffi::DeviceAttr> {
        // SAFETY: a zeroed structure is a valid empty answer.
        let mut attr: ffi::DeviceAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, the answer has the library's layout.
        match unsafe { (self.library.query_device)(self.context, &mut attr) } {
            0 => Ok(attr),
            errno => Err(failure(format!("querying {}: {}", self.name, std::io::Error::from_raw_os_error(errno)))),
        }
    }

    fn port_attributes(&self, port: u8) -> Option<ffi::PortAttr> {
        // SAFETY: a zeroed structure is a valid empty answer, and what older libraries leave out stays zero.
        let mut attr: ffi::PortAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, the answer has the library's layout.
        (unsafe { (self.library.query_port)(self.context, port, &mut attr) } == 0).then_some(attr)
    }

    fn find_active_port(&mut self) -> bool {
        let ports = self.attributes().map_or(0, |attr| attr.phys_port_cnt);
        let active = |&port: &u8| self.port_attributes(port).is_some_and(|attr| attr.state == ffi::PORT_ACTIVE);
        let found = (1..=ports).find(active);
        self.port = found.unwrap_or(0);
        found.is_some()
    }

    fn take_limits(&mut self) -> Result<()> {
        let attr = self.attributes()?;
        let port =
            self.port_attributes(self.port).ok_or_else(|| failure(format!("{} has lost its port", self.name)))?;
        let count = |value: i32| usize::try_from(value).unwrap_or(0);
        let reads = |value: i32| value.clamp(1, i32::from(READS_AT_ONCE_MAX)) as u8;
        self.limits = Limits {
            queue_pairs: count(attr.max_qp),
            requests: count(attr.max_qp_wr),
            completions: count(attr.max_cqe),
            reads_out: reads(attr.max_qp_init_rd_atom),
            reads_in: reads(attr.max_qp_rd_atom),
            message_bytes: port.max_msg_sz as usize,
        };
        self.mtu = port.active_mtu.clamp(1, 5) as u8;
        self.address.lid = port.lid;
        self.global_route = port.link_layer == ffi::LINK_LAYER_ETHERNET;
        Ok(())
    }

    /// Takes the GID that was asked for, or the best: on Ethernet RoCE v2 over IPv4, which routers and every driver carry.
    fn choose_gid(&mut self, wanted: Option<u8>) -> Result<()> {
        let entries = self.port_attributes(self.port).map_or(0, |port| port.gid_tbl_len.clamp(0, 256));
        let known = (0..entries as u32).filter_map(|index| {
            let index = index as u8;
            self.gid(index).map(|gid| (index, gid))
        });
        let chosen = match wanted {
            Some(wanted) => known.into_iter().find(|&(index, _)| index == wanted),
            None => {
                known.max_by_key(|&(index, gid)| (rank_of_gid(gid, &self.gid_type(index)), std::cmp::Reverse(index)))
            }
        };
        let Some((index, gid)) = chosen else {
            let which = wanted.map_or("no GID".into(), |index| format!("no GID at index {index}"));
            return Err(Error::config(format!(
                "{which} on {} port {}: give its network interface an address, or set RUDDER_VERBS_GID to an index that \
                 /sys/class/infiniband/{}/ports/{}/gids/ lists",
                self.name, self.port, self.name, self.port
            )));
        };
        self.gid_index = index;
        self.address.gid = gid;
        Ok(())
    }

    /// A GID of the port's table; nothing where the entry is empty.
    fn gid(&self, index: u8) -> Option<[u8; 16]> {
        let mut gid = [0; 16];
        // SAFETY: the context is open, and a GID has 16 bytes.
        let answered = unsafe { (self.library.query_gid)(self.context, self.port, index.into(), &mut gid) };
        (answered == 0 && gid != [0; 16]).then_some(gid)
    }

    fn gid_type(&self, index: u8) -> String {
        let path = format!("/sys/class/infiniband/{}/ports/{}/gid_attrs/types/{index}", self.name, self.port);
        fs::read_to_string(path).unwrap_or_default()
    }
}

/// How good a GID is: RoCE v2 before v1, IPv4 before IPv6, and an address that is routed before a link-local one.
fn rank_of_gid(gid: [u8; 16], kind: &str) -> (bool, bool, bool) {
    let ip = Ipv6Addr::from(gid);
    (kind.trim() == "RoCE v2", ip.to_ipv4_mapped().is_some(), ip.segments()[0] != 0xfe80)
}

/// The most that a field of one byte may say.
const READS_AT_ONCE_MAX: u8 = 255;

impl Drop for Device {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        // SAFETY: whoever registered or connected holds the device, so nothing of it is in use. A failure leaks.
        unsafe {
            if !self.domain.is_null() {
                (self.library.dealloc_pd)(self.domain);
            }
            (self.library.close_device)(self.context);
        }
    }
}

struct DeviceList {
    library: &'static ffi::Library,
    list: *mut *mut ffi::Device,
    count: usize,
}

impl DeviceList {
    fn new(library: &'static ffi::Library) -> Result<Self> {
        let mut count = 0;
        // SAFETY: the library writes one number.
        let list = unsafe { (library.get_device_list)(&mut count) };
        if list.is_null() {
            return Err(failure(format!(
                "no RDMA devices: {}; load the kernel's ib_uverbs and the device's driver, or use another transport",
                std::io::Error::last_os_error()
            )));
        }
        Ok(Self { library, list, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> &[*mut ffi::Device] {
        // SAFETY: the library returned so many entries.
        unsafe { std::slice::from_raw_parts(self.list, self.count) }
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: came from get_device_list; an opened device lives without the list.
        unsafe { (self.library.free_device_list)(self.list) };
    }
}

#[cfg(test)]
mod tests {
    //! Goal: of several GIDs the one is taken that most networks carry.

    use super::*;

    #[test]
    fn gids_are_ranked() {
        let of = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
        let ordered = [
            rank_of_gid(of("fe80::1"), "IB/RoCE v1\n"),
            rank_of_gid(of("fe80::1"), "RoCE v2\n"),
            rank_of_gid(of("2001:db8::1"), "RoCE v2\n"),
            rank_of_gid(of("::ffff:10.0.0.1"), "RoCE v2\n"),
        ];
        assert!(ordered.is_sorted() && rank_of_gid(of("::ffff:10.0.0.1"), "IB/RoCE v1") < ordered[1], "{ordered:?}");
    }
}
