#define _GNU_SOURCE
#include "fabric.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

/* What HPE ships with Slingshot; later releases serve it. */
#define RF_API FI_VERSION(1, 15)
#define RF_POLL_MAX 64

_Static_assert(RF_CONTEXT_BYTES >= sizeof(struct fi_context2), "a context holds what any mode asks for");

struct rf_library {
	int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const struct fi_info *, struct fi_info **);
	void (*freeinfo)(struct fi_info *);
	struct fi_info *(*dupinfo)(const struct fi_info *);
	int (*fabric)(struct fi_fabric_attr *, struct fid_fabric **, void *);
	const char *(*strerror)(int);
	uint32_t (*version)(void);
};

struct rf_domain {
	const struct rf_library *library;
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
};

struct rf_endpoint {
	struct rf_domain *domain;
	struct fid_ep *ep;
	struct fid_cq *cq;
	struct fid_av *av;
	int descriptor;
};

struct rf_region {
	struct rf_domain *domain;
	struct fid_mr *mr;
	uint64_t base;
};

/* fi_getinfo and its like have several versions, of which a plain dlsym takes the newest: one that knows larger structs than ours. */
static int find_symbol(void *handle, const char *name, const char *version, void *slot, char *why, size_t why_bytes)
{
	void *symbol = dlvsym(handle, name, version);

	if (!symbol) {
		snprintf(why, why_bytes, "it has no %s of version %s", name, version);
		return -FI_ENOSYS;
	}
	memcpy(slot, &symbol, sizeof symbol);
	return 0;
}

int rf_load(const char *path, struct rf_library **out, char *why, size_t why_bytes)
{
	struct rf_library *library = calloc(1, sizeof *library);
	void *handle;

	if (!library) {
		snprintf(why, why_bytes, "out of memory");
		return -FI_ENOMEM;
	}
	handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!handle) {
		const char *cause = dlerror();

		snprintf(why, why_bytes, "%s", cause ? cause : "it cannot be loaded");
		free(library);
		return -FI_ENOENT;
	}
	if (find_symbol(handle, "fi_getinfo", "FABRIC_1.3", &library->getinfo, why, why_bytes) ||
	    find_symbol(handle, "fi_freeinfo", "FABRIC_1.3", &library->freeinfo, why, why_bytes) ||
	    find_symbol(handle, "fi_dupinfo", "FABRIC_1.3", &library->dupinfo, why, why_bytes) ||
	    find_symbol(handle, "fi_fabric", "FABRIC_1.1", &library->fabric, why, why_bytes) ||
	    find_symbol(handle, "fi_strerror", "FABRIC_1.0", &library->strerror, why, why_bytes) ||
	    find_symbol(handle, "fi_version", "FABRIC_1.0", &library->version, why, why_bytes)) {
		free(library);
		return -FI_ENOSYS;
	}
	if (library->version() < RF_API) {
		snprintf(why, why_bytes, "it is version %u.%u, and 1.15 or later is needed", FI_MAJOR(library->version()),
			 FI_MINOR(library->version()));
		free(library);
		return -FI_ENOSYS;
	}
	*out = library;
	return 0;
}

uint32_t rf_version(const struct rf_library *library)
{
	return library->version();
}

const char *rf_strerror(const struct rf_library *library, int error)
{
	return library->strerror(error < 0 ? -error : error);
}

static struct fi_info *make_hints(const struct rf_library *library, const char *provider, const char *domain, int reads)
{
	/* Only the library knows how large its structs are. */
	struct fi_info *hints = library->dupinfo(NULL);

	if (!hints)
		return NULL;
	hints->caps = FI_MSG | FI_SEND | FI_RECV;
	if (reads)
		hints->caps |= FI_RMA | FI_READ | FI_REMOTE_READ;
	hints->mode = FI_CONTEXT | FI_CONTEXT2;
	hints->ep_attr->type = FI_EP_RDM;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_RAW | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY |
				      FI_MR_MMU_NOTIFY | FI_MR_ENDPOINT;
	/* Regions are registered by any thread while others poll. */
	hints->domain_attr->threading = FI_THREAD_SAFE;
	hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
	hints->fabric_attr->prov_name = strdup(provider);
	if (domain)
		hints->domain_attr->name = strdup(domain);
	return hints;
}

int rf_find(const struct rf_library *library, const char *provider, const char *domain, const char *source, int reads,
	    struct fi_info **out)
{
	struct fi_info *hints = make_hints(library, provider, domain, reads);
	struct fi_info *found = NULL;
	int error;

	if (!hints)
		return -FI_ENOMEM;
	error = library->getinfo(RF_API, source, NULL, source ? FI_SOURCE : 0, hints, &found);
	library->freeinfo(hints);
	if (error)
		return error;
	*out = library->dupinfo(found);
	library->freeinfo(found);
	return *out ? 0 : -FI_ENOMEM;
}

static void copy_name(char *to, const char *from)
{
	snprintf(to, RF_NAME_BYTES, "%s", from ? from : "");
}

void rf_describe(const struct fi_info *info, struct rf_limits *limits)
{
	const struct fi_tx_attr *tx = info->tx_attr;
	int mr_mode = info->domain_attr->mr_mode;

	memset(limits, 0, sizeof *limits);
	limits->sends_max = tx->size;
	limits->receives_max = info->rx_attr->size;
	limits->message_bytes_max = info->ep_attr->max_msg_size;
	limits->inject_bytes_max = tx->inject_size;
	limits->local_segments_max = tx->iov_limit;
	limits->remote_segments_max = tx->rma_iov_limit;
	limits->mr_mode = mr_mode;
	limits->can_read = (info->caps & FI_RMA) != 0;
	limits->local_registration = (mr_mode & FI_MR_LOCAL) || (info->mode & FI_LOCAL_MR);
	limits->endpoint_registration = (mr_mode & FI_MR_ENDPOINT) != 0;
	limits->pinned_registration = (mr_mode & FI_MR_ALLOCATED) != 0;
	limits->manual_progress = info->domain_attr->data_progress != FI_PROGRESS_AUTO;
	copy_name(limits->provider, info->fabric_attr->prov_name);
	copy_name(limits->fabric, info->fabric_attr->name);
	copy_name(limits->domain, info->domain_attr->name);
}

void rf_free(const struct rf_library *library, struct fi_info *info)
{
	library->freeinfo(info);
}

int rf_domain_open(const struct rf_library *library, struct fi_info *info, struct rf_domain **out)
{
	struct rf_domain *domain = calloc(1, sizeof *domain);
	int error = domain ? 0 : -FI_ENOMEM;

	if (!error)
		error = library->fabric(info->fabric_attr, &domain->fabric, NULL);
	if (!error)
		error = fi_domain(domain->fabric, info, &domain->domain, NULL);
	if (error) {
		if (domain && domain->fabric)
			fi_close(&domain->fabric->fid);
		free(domain);
		library->freeinfo(info);
		return error;
	}
	domain->library = library;
	domain->info = info;
	*out = domain;
	return 0;
}

int rf_domain_close(struct rf_domain *domain)
{
	int error = fi_close(&domain->domain->fid);

	if (error)
		return error;
	error = fi_close(&domain->fabric->fid);
	if (error)
		return error;
	domain->library->freeinfo(domain->info);
	free(domain);
	return 0;
}

/* A queue that can be waited for by its descriptor where the provider has such, and one that must be polled elsewhere. */
static int open_queue(struct rf_endpoint *endpoint, uint64_t completions)
{
	struct fi_cq_attr attributes = {
		.size = completions,
		.format = FI_CQ_FORMAT_MSG,
		.wait_obj = FI_WAIT_FD,
	};
	struct fid_domain *domain = endpoint->domain->domain;

	endpoint->descriptor = -1;
	if (!fi_cq_open(domain, &attributes, &endpoint->cq, NULL)) {
		if (!fi_control(&endpoint->cq->fid, FI_GETWAIT, &endpoint->descriptor) && endpoint->descriptor >= 0)
			return 0;
		endpoint->descriptor = -1;
		fi_close(&endpoint->cq->fid);
		endpoint->cq = NULL;
	}
	attributes.wait_obj = FI_WAIT_NONE;
	return fi_cq_open(domain, &attributes, &endpoint->cq, NULL);
}

int rf_endpoint_open(struct rf_domain *domain, uint64_t completions, struct rf_endpoint **out)
{
	struct fi_av_attr addresses = { .type = FI_AV_UNSPEC };
	struct rf_endpoint *endpoint = calloc(1, sizeof *endpoint);
	int error;

	if (!endpoint)
		return -FI_ENOMEM;
	endpoint->domain = domain;
	error = open_queue(endpoint, completions);
	if (!error)
		error = fi_av_open(domain->domain, &addresses, &endpoint->av, NULL);
	if (!error)
		error = fi_endpoint(domain->domain, domain->info, &endpoint->ep, NULL);
	if (!error)
		error = fi_ep_bind(endpoint->ep, &endpoint->cq->fid, FI_TRANSMIT | FI_RECV);
	if (!error)
		error = fi_ep_bind(endpoint->ep, &endpoint->av->fid, 0);
	if (!error)
		error = fi_enable(endpoint->ep);
	if (error) {
		rf_endpoint_close(endpoint);
		return error;
	}
	*out = endpoint;
	return 0;
}

int rf_endpoint_close(struct rf_endpoint *endpoint)
{
	int error = endpoint->ep ? fi_close(&endpoint->ep->fid) : 0;

	if (error)
		return error;
	if (endpoint->cq)
		fi_close(&endpoint->cq->fid);
	if (endpoint->av)
		fi_close(&endpoint->av->fid);
	free(endpoint);
	return 0;
}

int rf_endpoint_descriptor(const struct rf_endpoint *endpoint)
{
	return endpoint->descriptor;
}

int rf_endpoint_may_wait(struct rf_endpoint *endpoint)
{
	struct fid *queue = &endpoint->cq->fid;

	/* Providers without wait objects need not answer. */
	if (endpoint->descriptor < 0)
		return -FI_ENOSYS;
	return fi_trywait(endpoint->domain->fabric, &queue, 1);
}

int rf_endpoint_name(struct rf_endpoint *endpoint, void *name, size_t *bytes)
{
	return fi_getname(&endpoint->ep->fid, name, bytes);
}

int rf_endpoint_resolve(struct rf_endpoint *endpoint, const void *name, uint64_t *address)
{
	fi_addr_t found = FI_ADDR_UNSPEC;
	int inserted = fi_av_insert(endpoint->av, name, 1, &found, 0, NULL);

	if (inserted != 1)
		return inserted < 0 ? inserted : -FI_EADDRNOTAVAIL;
	*address = found;
	return 0;
}

int rf_endpoint_forget(struct rf_endpoint *endpoint, uint64_t address)
{
	fi_addr_t known = address;

	return fi_av_remove(endpoint->av, &known, 1, 0);
}

static uint64_t access_flags(uint32_t access)
{
	uint64_t flags = 0;

	if (access & RF_ACCESS_MESSAGES)
		flags |= FI_SEND | FI_RECV;
	if (access & RF_ACCESS_DESTINATION)
		flags |= FI_READ;
	if (access & RF_ACCESS_REMOTE_READ)
		flags |= FI_REMOTE_READ;
	return flags;
}

int rf_register(struct rf_domain *domain, struct rf_endpoint *endpoint, void *base, size_t bytes, uint32_t access,
		uint64_t wanted_key, struct rf_region **out)
{
	int mr_mode = domain->info->domain_attr->mr_mode;
	struct iovec memory = { .iov_base = base, .iov_len = bytes };
	struct fi_mr_attr attributes = {
		.mr_iov = &memory,
		.iov_count = 1,
		.access = access_flags(access),
		.requested_key = mr_mode & FI_MR_PROV_KEY ? 0 : wanted_key,
		.iface = FI_HMEM_SYSTEM,
	};
	struct rf_region *region = calloc(1, sizeof *region);
	int error;

	if (!region)
		return -FI_ENOMEM;
	region->domain = domain;
	region->base = mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)base : 0;
	error = fi_mr_regattr(domain->domain, &attributes, 0, &region->mr);
	if (error) {
		free(region);
		return error;
	}
	if (mr_mode & FI_MR_ENDPOINT) {
		error = fi_mr_bind(region->mr, &endpoint->ep->fid, 0);
		if (!error)
			error = fi_mr_enable(region->mr);
	}
	if (!error && (mr_mode & FI_MR_MMU_NOTIFY))
		error = fi_mr_refresh(region->mr, &memory, 1, 0);
	if (error) {
		rf_deregister(region);
		return error;
	}
	*out = region;
	return 0;
}

int rf_deregister(struct rf_region *region)
{
	int error = fi_close(&region->mr->fid);

	if (!error)
		free(region);
	return error;
}

void *rf_region_descriptor(struct rf_region *region)
{
	return fi_mr_desc(region->mr);
}

int rf_region_key(struct rf_region *region, struct rf_key *key)
{
	uint64_t plain = fi_mr_key(region->mr);
	size_t bytes = sizeof key->key;
	int error;

	memset(key, 0, sizeof *key);
	key->base = region->base;
	if (region->domain->info->domain_attr->mr_mode & FI_MR_RAW) {
		uint64_t base = 0;

		error = fi_mr_raw_attr(region->mr, &base, key->key, &bytes, 0);
		key->bytes = bytes;
		return error;
	}
	if (plain == FI_KEY_NOTAVAIL)
		return -FI_ENOKEY;
	key->bytes = sizeof plain;
	memcpy(key->key, &plain, sizeof plain);
	return 0;
}

int rf_key_import(struct rf_domain *domain, const struct rf_key *key, uint64_t *imported)
{
	uint8_t raw[RF_KEY_BYTES];

	if (domain->info->domain_attr->mr_mode & FI_MR_RAW) {
		memcpy(raw, key->key, sizeof raw);
		return fi_mr_map_raw(domain->domain, key->base, raw, key->bytes, imported, 0);
	}
	if (key->bytes != sizeof *imported)
		return -FI_EINVAL;
	memcpy(imported, key->key, sizeof *imported);
	return 0;
}

void rf_key_release(struct rf_domain *domain, uint64_t imported)
{
	if (domain->info->domain_attr->mr_mode & FI_MR_RAW)
		fi_mr_unmap_key(domain->domain, imported);
}

int rf_read(struct rf_endpoint *endpoint, const struct rf_segment *segments, size_t count, void *descriptor,
	    uint64_t address, uint64_t key, void *context, int more)
{
	struct iovec local[RF_SEGMENTS_MAX];
	struct fi_rma_iov remote[RF_SEGMENTS_MAX];
	void *descriptors[RF_SEGMENTS_MAX];
	struct fi_msg_rma message = {
		.msg_iov = local,
		.desc = descriptors,
		.iov_count = count,
		.addr = address,
		.rma_iov = remote,
		.rma_iov_count = count,
		.context = context,
	};

	if (count > RF_SEGMENTS_MAX)
		return -FI_EINVAL;
	for (size_t i = 0; i < count; i++) {
		local[i].iov_base = segments[i].local;
		local[i].iov_len = segments[i].bytes;
		descriptors[i] = descriptor;
		remote[i].addr = segments[i].remote;
		remote[i].len = segments[i].bytes;
		remote[i].key = key;
	}
	return fi_readmsg(endpoint->ep, &message, FI_COMPLETION | (more ? FI_MORE : 0));
}

int rf_send(struct rf_endpoint *endpoint, const void *bytes, size_t count, void *descriptor, uint64_t address,
	    void *context)
{
	return fi_send(endpoint->ep, bytes, count, descriptor, address, context);
}

int rf_receive(struct rf_endpoint *endpoint, void *bytes, size_t count, void *descriptor, void *context)
{
	return fi_recv(endpoint->ep, bytes, count, descriptor, FI_ADDR_UNSPEC, context);
}

int rf_poll(struct rf_endpoint *endpoint, struct rf_completion *completions, size_t max)
{
	struct fi_cq_msg_entry entries[RF_POLL_MAX];
	struct fi_cq_err_entry failed = { 0 };
	ssize_t count = fi_cq_read(endpoint->cq, entries, max < RF_POLL_MAX ? max : RF_POLL_MAX);

	if (count == -FI_EAGAIN)
		return 0;
	if (count == -FI_EAVAIL) {
		count = fi_cq_readerr(endpoint->cq, &failed, 0);
		if (count == -FI_EAGAIN)
			return 0;
		if (count < 0)
			return (int)count;
		completions[0].context = failed.op_context;
		completions[0].bytes = failed.len;
		completions[0].error = failed.err ? failed.err : FI_EOTHER;
		completions[0].provider_error = failed.prov_errno;
		return 1;
	}
	if (count < 0)
		return (int)count;
	for (ssize_t i = 0; i < count; i++) {
		completions[i].context = entries[i].op_context;
		completions[i].bytes = entries[i].len;
		completions[i].error = 0;
		completions[i].provider_error = 0;
	}
	return (int)count;
}
