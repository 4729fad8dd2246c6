/*
 * A libfabric that is hard to please. It moves bytes within one process only, and keeps to the letter of what a real provider may do:
 *
 *   cxi      what Slingshot's provider asks for: registrations bound to an enabled endpoint, keys of the provider's, one segment to a
 *            read, no descriptors to wait on, progress only in the caller's own calls, one domain a NIC.
 *   fakeraw  all of that, and: local buffers registered and bound too, long raw keys, virtual addresses, messages of at most 4096 bytes,
 *            four segments to a read.
 *
 * Both refuse posts at random, take few at a time, end them in any order, hold back what was posted with FI_MORE until something without
 * it follows, use all of the context that is lent to them, and refuse to close what is still in use.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
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

#define API FI_VERSION(1, 15)
#define SENDS_MAX 24
#define INBOX_MAX 64
#define SEGMENTS_MAX 4
#define ENDPOINTS_MAX 65536
#define STEPS_MAX 3
#define RAW_KEY_BYTES 24

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int objects;
static int stalled;
static uint64_t random_state = 0x9E3779B97F4A7C15;

struct region;

struct fabric {
	struct fid_fabric fid;
};

struct domain {
	struct fid_domain fid;
	struct fabric *fabric;
	int mr_mode;
	size_t segments_max;
	size_t message_bytes_max;
	int children;
};

struct entry {
	struct entry *next;
	struct fi_cq_err_entry entry;
};

struct queue {
	struct fid_cq fid;
	struct domain *domain;
	struct entry *first, **last;
	struct endpoint *endpoint;
};

struct vector {
	struct fid_av fid;
	struct domain *domain;
	uint64_t *names;
	size_t count;
	struct endpoint *endpoint;
};

struct operation {
	struct operation *next;
	int is_read;
	int is_rung;
	uint64_t target;
	void *context;
	size_t count;
	struct iovec local[SEGMENTS_MAX];
	struct fi_rma_iov remote[SEGMENTS_MAX];
};

struct message {
	struct message *next;
	size_t bytes;
	char content[];
};

struct receive {
	struct receive *next;
	void *context;
	char *buffer;
	size_t bytes;
};

struct endpoint {
	struct fid_ep fid;
	struct domain *domain;
	struct queue *queue;
	struct vector *vector;
	uint64_t name;
	int is_enabled;
	int regions;
	struct operation *operations;
	size_t posted;
	struct message *inbox, **inbox_last;
	size_t inbox_count;
	struct receive *receives, **receives_last;
};

struct region {
	struct fid_mr fid;
	struct region *next;
	struct domain *domain;
	struct endpoint *endpoint;
	char *base;
	size_t bytes;
	uint64_t access;
	uint64_t key;
	int is_enabled;
};

static struct endpoint *endpoints[ENDPOINTS_MAX];
static uint64_t names;
static struct region *regions;
/* What map_raw hands out, by its place here. */
static uint64_t mapped[ENDPOINTS_MAX];
static size_t mapped_count;

static uint64_t draw(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static int refuses(void)
{
	return draw() % 6 == 0;
}

/* For tests: what is open, and reads that never end. */
int fake_objects(void)
{
	int count;

	pthread_mutex_lock(&lock);
	count = objects;
	pthread_mutex_unlock(&lock);
	return count;
}

void fake_stall(int stall)
{
	pthread_mutex_lock(&lock);
	stalled = stall;
	pthread_mutex_unlock(&lock);
}

/* Closing: the lock is held, and 0 means that the object is gone. */
static int close_with(int (*closing)(struct fid *), struct fid *fid)
{
	int error;

	pthread_mutex_lock(&lock);
	error = closing(fid);
	if (!error)
		objects--;
	pthread_mutex_unlock(&lock);
	return error;
}

/* An object of a domain's, or one that belongs to none. */
static void opened(struct domain *domain)
{
	pthread_mutex_lock(&lock);
	objects++;
	if (domain)
		domain->children++;
	pthread_mutex_unlock(&lock);
}

/* Completion queues. */

static void complete(struct queue *queue, void *context, uint64_t flags, size_t bytes, int error)
{
	struct entry *entry = calloc(1, sizeof *entry);

	entry->entry.op_context = context;
	entry->entry.flags = flags;
	entry->entry.len = bytes;
	entry->entry.err = error;
	*queue->last = entry;
	queue->last = &entry->next;
}

static void take(struct queue *queue)
{
	struct entry *entry = queue->first;

	queue->first = entry->next;
	if (!queue->first)
		queue->last = &queue->first;
	free(entry);
}

static struct region *find_region(uint64_t key)
{
	struct region *region = regions;

	while (region && !(region->is_enabled && region->key == key))
		region = region->next;
	return region;
}

/* 0, or the error that the reader is told. */
static int read_rows(struct endpoint *endpoint, const struct operation *operation)
{
	struct domain *domain = endpoint->domain;
	struct endpoint *target = endpoints[operation->target];

	if (!target)
		return EHOSTUNREACH;
	for (size_t i = 0; i < operation->count; i++) {
		const struct fi_rma_iov *remote = &operation->remote[i];
		uint64_t key = remote->key;
		struct region *region;
		uint64_t offset;

		if (domain->mr_mode & FI_MR_RAW) {
			if (key >= mapped_count || !mapped[key])
				return EKEYREJECTED;
			key = mapped[key];
		}
		region = find_region(key);
		if (!region || region->endpoint != target || !(region->access & FI_REMOTE_READ))
			return EKEYREJECTED;
		offset = remote->addr - (domain->mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)region->base : 0);
		if (offset > region->bytes || remote->len > region->bytes - offset)
			return EACCES;
		memcpy(operation->local[i].iov_base, region->base + offset, remote->len);
	}
	return 0;
}

static int deliver(const struct operation *operation)
{
	struct endpoint *target = endpoints[operation->target];
	struct message *message;

	if (!target)
		return ECONNREFUSED;
	if (target->inbox_count == INBOX_MAX)
		return EAGAIN;
	message = malloc(sizeof *message + operation->local[0].iov_len);
	message->next = NULL;
	message->bytes = operation->local[0].iov_len;
	memcpy(message->content, operation->local[0].iov_base, message->bytes);
	*target->inbox_last = message;
	target->inbox_last = &message->next;
	target->inbox_count++;
	return 0;
}

/* Ends some operation that is rung, from anywhere in the list; whether there was one. */
static int step(struct endpoint *endpoint)
{
	struct operation **at = &endpoint->operations;
	struct operation *operation;
	size_t skip = endpoint->posted ? draw() % endpoint->posted : 0;
	int error;

	for (; *at && (skip > 0 || !(*at)->is_rung || ((*at)->is_read && stalled)); at = &(*at)->next)
		skip -= skip > 0;
	operation = *at;
	if (!operation)
		return 0;
	error = operation->is_read ? read_rows(endpoint, operation) : deliver(operation);
	if (error == EAGAIN)
		return 0;
	complete(endpoint->queue, operation->context, operation->is_read ? FI_RMA | FI_READ : FI_MSG | FI_SEND, 0, error);
	*at = operation->next;
	endpoint->posted--;
	free(operation);
	return 1;
}

static void receive_messages(struct endpoint *endpoint)
{
	while (endpoint->inbox && endpoint->receives) {
		struct message *message = endpoint->inbox;
		struct receive *receive = endpoint->receives;
		size_t bytes = message->bytes < receive->bytes ? message->bytes : receive->bytes;

		memcpy(receive->buffer, message->content, bytes);
		complete(endpoint->queue, receive->context, FI_MSG | FI_RECV, bytes, message->bytes > bytes ? FI_ETRUNC : 0);
		endpoint->inbox = message->next;
		endpoint->receives = receive->next;
		if (!endpoint->inbox)
			endpoint->inbox_last = &endpoint->inbox;
		if (!endpoint->receives)
			endpoint->receives_last = &endpoint->receives;
		endpoint->inbox_count--;
		free(message);
		free(receive);
	}
}

static ssize_t queue_read(struct fid_cq *fid, void *buffer, size_t count)
{
	struct queue *queue = (struct queue *)fid;
	struct fi_cq_msg_entry *entries = buffer;
	ssize_t taken = 0;

	pthread_mutex_lock(&lock);
	if (queue->endpoint && queue->endpoint->is_enabled) {
		for (int i = 0; i < STEPS_MAX; i++)
			step(queue->endpoint);
		receive_messages(queue->endpoint);
	}
	if (queue->first && queue->first->entry.err) {
		taken = -FI_EAVAIL;
	} else {
		while (queue->first && !queue->first->entry.err && (size_t)taken < count) {
			entries[taken].op_context = queue->first->entry.op_context;
			entries[taken].flags = queue->first->entry.flags;
			entries[taken].len = queue->first->entry.len;
			taken++;
			take(queue);
		}
	}
	pthread_mutex_unlock(&lock);
	return taken ? taken : -FI_EAGAIN;
}

static ssize_t queue_read_error(struct fid_cq *fid, struct fi_cq_err_entry *entry, uint64_t flags)
{
	struct queue *queue = (struct queue *)fid;
	ssize_t taken = -FI_EAGAIN;

	(void)flags;
	pthread_mutex_lock(&lock);
	if (queue->first && queue->first->entry.err) {
		*entry = queue->first->entry;
		take(queue);
		taken = 1;
	}
	pthread_mutex_unlock(&lock);
	return taken;
}

static int closing_queue(struct fid *fid)
{
	struct queue *queue = (struct queue *)fid;

	if (queue->endpoint)
		return -FI_EBUSY;
	while (queue->first)
		take(queue);
	queue->domain->children--;
	free(queue);
	return 0;
}

static int queue_close(struct fid *fid)
{
	return close_with(closing_queue, fid);
}

static struct fi_ops queue_fid_ops = { .size = sizeof(struct fi_ops), .close = queue_close };
static struct fi_ops_cq queue_ops = {
	.size = sizeof(struct fi_ops_cq),
	.read = queue_read,
	.readerr = queue_read_error,
};

static int queue_open(struct fid_domain *domain, struct fi_cq_attr *attributes, struct fid_cq **fid, void *context)
{
	struct queue *queue;

	(void)context;
	if (attributes->wait_obj != FI_WAIT_NONE || attributes->format != FI_CQ_FORMAT_MSG)
		return -FI_ENOSYS;
	queue = calloc(1, sizeof *queue);
	queue->fid.fid.fclass = FI_CLASS_CQ;
	queue->fid.fid.ops = &queue_fid_ops;
	queue->fid.ops = &queue_ops;
	queue->domain = (struct domain *)domain;
	queue->last = &queue->first;
	*fid = &queue->fid;
	opened(queue->domain);
	return 0;
}

/* Address vectors: a peer is its endpoint's number. */

static int vector_insert(struct fid_av *fid, const void *address, size_t count, fi_addr_t *found, uint64_t flags, void *context)
{
	struct vector *vector = (struct vector *)fid;

	(void)flags;
	(void)context;
	if (count != 1)
		return -FI_EINVAL;
	pthread_mutex_lock(&lock);
	vector->names = realloc(vector->names, (vector->count + 1) * sizeof *vector->names);
	memcpy(&vector->names[vector->count], address, sizeof *vector->names);
	*found = vector->count++;
	pthread_mutex_unlock(&lock);
	return 1;
}

static int vector_remove(struct fid_av *fid, fi_addr_t *address, size_t count, uint64_t flags)
{
	(void)fid;
	(void)address;
	(void)count;
	(void)flags;
	return 0;
}

static int closing_vector(struct fid *fid)
{
	struct vector *vector = (struct vector *)fid;

	if (vector->endpoint)
		return -FI_EBUSY;
	vector->domain->children--;
	free(vector->names);
	free(vector);
	return 0;
}

static int vector_close(struct fid *fid)
{
	return close_with(closing_vector, fid);
}

static struct fi_ops vector_fid_ops = { .size = sizeof(struct fi_ops), .close = vector_close };
static struct fi_ops_av vector_ops = {
	.size = sizeof(struct fi_ops_av),
	.insert = vector_insert,
	.remove = vector_remove,
};

static int vector_open(struct fid_domain *domain, struct fi_av_attr *attributes, struct fid_av **fid, void *context)
{
	struct vector *vector = calloc(1, sizeof *vector);

	(void)attributes;
	(void)context;
	vector->fid.fid.fclass = FI_CLASS_AV;
	vector->fid.fid.ops = &vector_fid_ops;
	vector->fid.ops = &vector_ops;
	vector->domain = (struct domain *)domain;
	*fid = &vector->fid;
	opened(vector->domain);
	return 0;
}

/* Endpoints. */

static int is_registered(struct endpoint *endpoint, const struct iovec *local, void *descriptor, uint64_t access)
{
	struct region *region = regions;

	if (!(endpoint->domain->mr_mode & FI_MR_LOCAL))
		return 1;
	while (region && (void *)region != descriptor)
		region = region->next;
	return region && region->is_enabled && region->endpoint == endpoint && (region->access & access) == access &&
	       (char *)local->iov_base >= region->base &&
	       (char *)local->iov_base + local->iov_len <= region->base + region->bytes;
}

static struct operation *new_operation(struct endpoint *endpoint, fi_addr_t address, void *context)
{
	struct operation *operation = calloc(1, sizeof *operation);

	memset(context, 0xFF, sizeof(struct fi_context2));
	operation->context = context;
	operation->target = endpoint->vector->names[address];
	operation->next = endpoint->operations;
	endpoint->operations = operation;
	endpoint->posted++;
	return operation;
}

static void ring(struct endpoint *endpoint)
{
	for (struct operation *operation = endpoint->operations; operation; operation = operation->next)
		operation->is_rung = 1;
}

static ssize_t post_read(struct endpoint *endpoint, const struct fi_msg_rma *message, uint64_t flags)
{
	struct domain *domain = endpoint->domain;
	struct operation *operation;
	size_t bytes = 0;

	if (message->iov_count > domain->segments_max || message->rma_iov_count != message->iov_count)
		return -FI_EINVAL;
	for (size_t i = 0; i < message->iov_count; i++) {
		void *descriptor = message->desc ? message->desc[i] : NULL;

		bytes += message->msg_iov[i].iov_len;
		if (message->msg_iov[i].iov_len != message->rma_iov[i].len ||
		    !is_registered(endpoint, &message->msg_iov[i], descriptor, FI_READ))
			return -FI_EINVAL;
	}
	if (bytes > domain->message_bytes_max || message->addr >= endpoint->vector->count)
		return -FI_EINVAL;
	if (endpoint->posted == SENDS_MAX || refuses())
		return -FI_EAGAIN;
	operation = new_operation(endpoint, message->addr, message->context);
	operation->is_read = 1;
	operation->count = message->iov_count;
	memcpy(operation->local, message->msg_iov, message->iov_count * sizeof *message->msg_iov);
	memcpy(operation->remote, message->rma_iov, message->iov_count * sizeof *message->rma_iov);
	if (!(flags & FI_MORE))
		ring(endpoint);
	return 0;
}

static ssize_t endpoint_read(struct fid_ep *fid, const struct fi_msg_rma *message, uint64_t flags)
{
	ssize_t error;

	pthread_mutex_lock(&lock);
	error = post_read((struct endpoint *)fid, message, flags);
	pthread_mutex_unlock(&lock);
	return error;
}

static ssize_t endpoint_send(struct fid_ep *fid, const void *buffer, size_t bytes, void *descriptor, fi_addr_t address, void *context)
{
	struct endpoint *endpoint = (struct endpoint *)fid;
	struct iovec local = { .iov_base = (void *)buffer, .iov_len = bytes };
	ssize_t error = 0;

	pthread_mutex_lock(&lock);
	if (bytes > endpoint->domain->message_bytes_max || address >= endpoint->vector->count ||
	    !is_registered(endpoint, &local, descriptor, FI_SEND)) {
		error = -FI_EINVAL;
	} else if (endpoint->posted == SENDS_MAX || refuses()) {
		error = -FI_EAGAIN;
	} else {
		struct operation *operation = new_operation(endpoint, address, context);

		operation->count = 1;
		operation->local[0] = local;
		ring(endpoint);
	}
	pthread_mutex_unlock(&lock);
	return error;
}

static ssize_t endpoint_receive(struct fid_ep *fid, void *buffer, size_t bytes, void *descriptor, fi_addr_t source, void *context)
{
	struct endpoint *endpoint = (struct endpoint *)fid;
	struct iovec local = { .iov_base = buffer, .iov_len = bytes };
	struct receive *receive;
	ssize_t error = 0;

	(void)source;
	pthread_mutex_lock(&lock);
	if (!is_registered(endpoint, &local, descriptor, FI_RECV)) {
		error = -FI_EINVAL;
	} else if (refuses()) {
		error = -FI_EAGAIN;
	} else {
		memset(context, 0xFF, sizeof(struct fi_context2));
		receive = calloc(1, sizeof *receive);
		receive->context = context;
		receive->buffer = buffer;
		receive->bytes = bytes;
		*endpoint->receives_last = receive;
		endpoint->receives_last = &receive->next;
	}
	pthread_mutex_unlock(&lock);
	return error;
}

static int endpoint_getname(struct fid *fid, void *address, size_t *bytes)
{
	struct endpoint *endpoint = (struct endpoint *)fid;

	if (*bytes < sizeof endpoint->name)
		return -FI_ETOOSMALL;
	memcpy(address, &endpoint->name, sizeof endpoint->name);
	*bytes = sizeof endpoint->name;
	return 0;
}

static int endpoint_bind(struct fid *fid, struct fid *other, uint64_t flags)
{
	struct endpoint *endpoint = (struct endpoint *)fid;

	(void)flags;
	if (other->fclass == FI_CLASS_CQ) {
		endpoint->queue = (struct queue *)other;
		endpoint->queue->endpoint = endpoint;
	} else if (other->fclass == FI_CLASS_AV) {
		endpoint->vector = (struct vector *)other;
		endpoint->vector->endpoint = endpoint;
	} else {
		return -FI_EINVAL;
	}
	return 0;
}

static int endpoint_control(struct fid *fid, int command, void *argument)
{
	struct endpoint *endpoint = (struct endpoint *)fid;

	(void)argument;
	if (command != FI_ENABLE || !endpoint->queue || !endpoint->vector)
		return -FI_EOPBADSTATE;
	endpoint->is_enabled = 1;
	return 0;
}

static int closing_endpoint(struct fid *fid)
{
	struct endpoint *endpoint = (struct endpoint *)fid;

	if (endpoint->regions)
		return -FI_EBUSY;
	endpoints[endpoint->name] = NULL;
	while (endpoint->operations) {
		struct operation *operation = endpoint->operations;

		endpoint->operations = operation->next;
		free(operation);
	}
	while (endpoint->inbox) {
		struct message *message = endpoint->inbox;

		endpoint->inbox = message->next;
		free(message);
	}
	while (endpoint->receives) {
		struct receive *receive = endpoint->receives;

		endpoint->receives = receive->next;
		free(receive);
	}
	if (endpoint->queue)
		endpoint->queue->endpoint = NULL;
	if (endpoint->vector)
		endpoint->vector->endpoint = NULL;
	endpoint->domain->children--;
	free(endpoint);
	return 0;
}

static int endpoint_close(struct fid *fid)
{
	return close_with(closing_endpoint, fid);
}

static struct fi_ops endpoint_fid_ops = {
	.size = sizeof(struct fi_ops),
	.close = endpoint_close,
	.bind = endpoint_bind,
	.control = endpoint_control,
};
static struct fi_ops_cm endpoint_cm_ops = { .size = sizeof(struct fi_ops_cm), .getname = endpoint_getname };
static struct fi_ops_msg endpoint_msg_ops = {
	.size = sizeof(struct fi_ops_msg),
	.recv = endpoint_receive,
	.send = endpoint_send,
};
static struct fi_ops_rma endpoint_rma_ops = { .size = sizeof(struct fi_ops_rma), .readmsg = endpoint_read };

static int endpoint_open(struct fid_domain *domain, struct fi_info *info, struct fid_ep **fid, void *context)
{
	struct endpoint *endpoint = calloc(1, sizeof *endpoint);

	(void)info;
	(void)context;
	endpoint->fid.fid.fclass = FI_CLASS_EP;
	endpoint->fid.fid.ops = &endpoint_fid_ops;
	endpoint->fid.cm = &endpoint_cm_ops;
	endpoint->fid.msg = &endpoint_msg_ops;
	endpoint->fid.rma = &endpoint_rma_ops;
	endpoint->domain = (struct domain *)domain;
	endpoint->inbox_last = &endpoint->inbox;
	endpoint->receives_last = &endpoint->receives;
	pthread_mutex_lock(&lock);
	endpoint->name = ++names;
	endpoints[endpoint->name] = endpoint;
	pthread_mutex_unlock(&lock);
	*fid = &endpoint->fid;
	opened(endpoint->domain);
	return 0;
}

/* Registered memory. */

static int closing_region(struct fid *fid)
{
	struct region *region = (struct region *)fid;
	struct region **at = &regions;

	while (*at != region)
		at = &(*at)->next;
	*at = region->next;
	if (region->endpoint)
		region->endpoint->regions--;
	region->domain->children--;
	free(region);
	return 0;
}

static int region_close(struct fid *fid)
{
	return close_with(closing_region, fid);
}

static int region_bind(struct fid *fid, struct fid *other, uint64_t flags)
{
	struct region *region = (struct region *)fid;

	(void)flags;
	if (other->fclass != FI_CLASS_EP)
		return -FI_EINVAL;
	pthread_mutex_lock(&lock);
	region->endpoint = (struct endpoint *)other;
	region->endpoint->regions++;
	pthread_mutex_unlock(&lock);
	return 0;
}

static int region_control(struct fid *fid, int command, void *argument)
{
	struct region *region = (struct region *)fid;

	if (command == FI_ENABLE && region->endpoint) {
		pthread_mutex_lock(&lock);
		region->is_enabled = 1;
		region->key = draw();
		region->fid.key = region->domain->mr_mode & FI_MR_RAW ? FI_KEY_NOTAVAIL : region->key;
		pthread_mutex_unlock(&lock);
		return 0;
	}
	if (command == FI_GET_RAW_MR && region->is_enabled) {
		struct fi_mr_raw_attr *raw = argument;

		if (*raw->key_size < RAW_KEY_BYTES)
			return -FI_ETOOSMALL;
		memset(raw->raw_key, 0x5A, RAW_KEY_BYTES);
		memcpy(raw->raw_key + 8, &region->key, sizeof region->key);
		*raw->base_addr = (uint64_t)(uintptr_t)region->base;
		*raw->key_size = RAW_KEY_BYTES;
		return 0;
	}
	return -FI_EOPBADSTATE;
}

static struct fi_ops region_ops = {
	.size = sizeof(struct fi_ops),
	.close = region_close,
	.bind = region_bind,
	.control = region_control,
};

static int region_register(struct fid *fid, const struct fi_mr_attr *attributes, uint64_t flags, struct fid_mr **out)
{
	struct region *region;

	(void)flags;
	if (attributes->iov_count != 1 || !attributes->mr_iov->iov_len)
		return -FI_EINVAL;
	region = calloc(1, sizeof *region);
	region->fid.fid.fclass = FI_CLASS_MR;
	region->fid.fid.ops = &region_ops;
	region->fid.mem_desc = region;
	region->fid.key = FI_KEY_NOTAVAIL;
	region->domain = (struct domain *)fid;
	region->base = attributes->mr_iov->iov_base;
	region->bytes = attributes->mr_iov->iov_len;
	region->access = attributes->access;
	pthread_mutex_lock(&lock);
	region->next = regions;
	regions = region;
	pthread_mutex_unlock(&lock);
	*out = &region->fid;
	opened(region->domain);
	return 0;
}

/* Domains. */

static int closing_domain(struct fid *fid)
{
	if (((struct domain *)fid)->children)
		return -FI_EBUSY;
	free(fid);
	return 0;
}

static int domain_close(struct fid *fid)
{
	return close_with(closing_domain, fid);
}

static int domain_control(struct fid *fid, int command, void *argument)
{
	int error = 0;

	if (!(((struct domain *)fid)->mr_mode & FI_MR_RAW))
		return -FI_ENOSYS;
	pthread_mutex_lock(&lock);
	if (command == FI_MAP_RAW_MR) {
		struct fi_mr_map_raw *map = argument;

		if (map->key_size != RAW_KEY_BYTES || map->raw_key[0] != 0x5A || mapped_count == ENDPOINTS_MAX) {
			error = -FI_EINVAL;
		} else {
			memcpy(&mapped[mapped_count], map->raw_key + 8, sizeof *mapped);
			*map->key = mapped_count++;
			objects++;
		}
	} else if (command == FI_UNMAP_KEY) {
		mapped[*(uint64_t *)argument] = 0;
		objects--;
	} else {
		error = -FI_ENOSYS;
	}
	pthread_mutex_unlock(&lock);
	return error;
}

static struct fi_ops domain_fid_ops = {
	.size = sizeof(struct fi_ops),
	.close = domain_close,
	.control = domain_control,
};
static struct fi_ops_domain domain_ops = {
	.size = sizeof(struct fi_ops_domain),
	.av_open = vector_open,
	.cq_open = queue_open,
	.endpoint = endpoint_open,
};
static struct fi_ops_mr domain_mr_ops = { .size = sizeof(struct fi_ops_mr), .regattr = region_register };

static int domain_open(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **fid, void *context)
{
	struct domain *domain = calloc(1, sizeof *domain);

	(void)context;
	domain->fid.fid.fclass = FI_CLASS_DOMAIN;
	domain->fid.fid.ops = &domain_fid_ops;
	domain->fid.ops = &domain_ops;
	domain->fid.mr = &domain_mr_ops;
	domain->fabric = (struct fabric *)fabric;
	domain->mr_mode = info->domain_attr->mr_mode;
	domain->segments_max = info->tx_attr->rma_iov_limit;
	domain->message_bytes_max = info->ep_attr->max_msg_size;
	*fid = &domain->fid;
	opened(NULL);
	return 0;
}

static int closing_fabric(struct fid *fid)
{
	free(fid);
	return 0;
}

static int fabric_close(struct fid *fid)
{
	return close_with(closing_fabric, fid);
}

static struct fi_ops fabric_fid_ops = { .size = sizeof(struct fi_ops), .close = fabric_close };
static struct fi_ops_fabric fabric_ops = { .size = sizeof(struct fi_ops_fabric), .domain = domain_open };

int fi_fabric(struct fi_fabric_attr *attributes, struct fid_fabric **fid, void *context)
{
	struct fabric *fabric = calloc(1, sizeof *fabric);

	(void)attributes;
	(void)context;
	fabric->fid.fid.fclass = FI_CLASS_FABRIC;
	fabric->fid.fid.ops = &fabric_fid_ops;
	fabric->fid.ops = &fabric_ops;
	fabric->fid.api_version = API;
	*fid = &fabric->fid;
	opened(NULL);
	return 0;
}

/* Offers. */

static char *copy_text(const char *text)
{
	return text ? strdup(text) : NULL;
}

struct fi_info *fi_dupinfo(const struct fi_info *info)
{
	struct fi_info *copy = calloc(1, sizeof *copy);

	if (info)
		*copy = *info;
	copy->next = NULL;
	copy->tx_attr = calloc(1, sizeof *copy->tx_attr);
	copy->rx_attr = calloc(1, sizeof *copy->rx_attr);
	copy->ep_attr = calloc(1, sizeof *copy->ep_attr);
	copy->domain_attr = calloc(1, sizeof *copy->domain_attr);
	copy->fabric_attr = calloc(1, sizeof *copy->fabric_attr);
	if (info) {
		*copy->tx_attr = *info->tx_attr;
		*copy->rx_attr = *info->rx_attr;
		*copy->ep_attr = *info->ep_attr;
		*copy->domain_attr = *info->domain_attr;
		*copy->fabric_attr = *info->fabric_attr;
		copy->domain_attr->name = copy_text(info->domain_attr->name);
		copy->fabric_attr->name = copy_text(info->fabric_attr->name);
		copy->fabric_attr->prov_name = copy_text(info->fabric_attr->prov_name);
	}
	pthread_mutex_lock(&lock);
	objects++;
	pthread_mutex_unlock(&lock);
	return copy;
}

void fi_freeinfo(struct fi_info *info)
{
	while (info) {
		struct fi_info *next = info->next;

		free(info->domain_attr->name);
		free(info->fabric_attr->name);
		free(info->fabric_attr->prov_name);
		free(info->tx_attr);
		free(info->rx_attr);
		free(info->ep_attr);
		free(info->domain_attr);
		free(info->fabric_attr);
		free(info);
		pthread_mutex_lock(&lock);
		objects--;
		pthread_mutex_unlock(&lock);
		info = next;
	}
}

static struct fi_info *offer(const char *provider, const char *domain, uint64_t caps, int mr_mode, size_t segments, size_t message_bytes)
{
	struct fi_info *info = fi_dupinfo(NULL);

	info->caps = caps;
	info->mode = FI_CONTEXT2;
	info->ep_attr->type = FI_EP_RDM;
	info->ep_attr->max_msg_size = message_bytes;
	info->tx_attr->size = SENDS_MAX;
	info->tx_attr->iov_limit = segments;
	info->tx_attr->rma_iov_limit = segments;
	info->rx_attr->size = 256;
	info->rx_attr->iov_limit = 1;
	info->domain_attr->name = strdup(domain);
	info->domain_attr->threading = FI_THREAD_SAFE;
	info->domain_attr->control_progress = FI_PROGRESS_MANUAL;
	info->domain_attr->data_progress = FI_PROGRESS_MANUAL;
	info->domain_attr->resource_mgmt = FI_RM_ENABLED;
	info->domain_attr->mr_mode = mr_mode;
	info->domain_attr->mr_key_size = mr_mode & FI_MR_RAW ? RAW_KEY_BYTES : 8;
	info->fabric_attr->name = strdup("fake");
	info->fabric_attr->prov_name = strdup(provider);
	return info;
}

int fi_getinfo(uint32_t version, const char *node, const char *service, uint64_t flags, const struct fi_info *hints, struct fi_info **found)
{
	static const struct {
		const char *provider, *domain;
		int mr_mode;
		size_t segments, message_bytes;
	} nics[] = {
		{ "cxi", "cxi0", FI_MR_ENDPOINT | FI_MR_ALLOCATED | FI_MR_PROV_KEY, 1, 1 << 20 },
		{ "cxi", "cxi1", FI_MR_ENDPOINT | FI_MR_ALLOCATED | FI_MR_PROV_KEY, 1, 1 << 20 },
		{ "fakeraw", "raw0",
		  FI_MR_ENDPOINT | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_LOCAL | FI_MR_RAW | FI_MR_VIRT_ADDR, 4, 4096 },
	};
	const char *provider = hints->fabric_attr->prov_name;
	const char *domain = hints->domain_attr->name;
	struct fi_info **last = found;

	(void)service;
	*found = NULL;
	if (version != API || node || flags || hints->ep_attr->type != FI_EP_RDM)
		return -FI_ENODATA;
	for (size_t i = 0; i < sizeof nics / sizeof *nics; i++) {
		int wanting = nics[i].mr_mode & ~hints->domain_attr->mr_mode;

		if (wanting || (provider && strcmp(provider, nics[i].provider)) || (domain && strcmp(domain, nics[i].domain)))
			continue;
		if (!(hints->mode & FI_CONTEXT2))
			continue;
		*last = offer(nics[i].provider, nics[i].domain, hints->caps, nics[i].mr_mode, nics[i].segments, nics[i].message_bytes);
		last = &(*last)->next;
	}
	return *found ? 0 : -FI_ENODATA;
}

/* The newest version of the symbol, of structs that nobody here knows: whoever asks for no version gets this one. */
int getinfo_of_the_future(void);
int getinfo_of_the_future(void)
{
	return -FI_ENOSYS;
}
__asm__(".symver getinfo_of_the_future, fi_getinfo@@FABRIC_9.0");
__asm__(".symver fi_getinfo, fi_getinfo@FABRIC_1.3");

const char *fi_strerror(int error)
{
	return error < FI_ERRNO_OFFSET ? strerror(error) : "an error of libfabric's own";
}

uint32_t fi_version(void)
{
	return API;
}
