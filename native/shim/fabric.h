/*
 * What rudder needs of libfabric, over opaque handles.
 *
 * Most of libfabric's interface is static inline functions over tables of pointers, which only C can call, and structs that grow with
 * its versions. Both stay behind this header. The library itself is loaded at run time, by the symbol versions of its 1.3 structs: those
 * are in every release from 1.15 (which Slingshot systems run) to 2.x.
 *
 * Unless said otherwise a function returns 0 or a negative error number of libfabric's, for rf_strerror.
 */
#ifndef RUDDER_NATIVE_FABRIC_H
#define RUDDER_NATIVE_FABRIC_H

#include <stddef.h>
#include <stdint.h>

#define RF_NAME_BYTES 64
#define RF_KEY_BYTES 128
#define RF_SEGMENTS_MAX 8
/* Bytes of a context, which the provider uses while its operation is under way; aligned to 16. */
#define RF_CONTEXT_BYTES 64

#define RF_ACCESS_MESSAGES 1u    /* source and destination of messages */
#define RF_ACCESS_DESTINATION 2u /* destination of reads */
#define RF_ACCESS_REMOTE_READ 4u /* peers may read it */

struct rf_library;
struct fi_info;
struct rf_domain;
struct rf_endpoint;
struct rf_region;

/* What a provider says of itself. */
struct rf_limits {
	uint64_t sends_max;
	uint64_t receives_max;
	uint64_t message_bytes_max;
	uint64_t inject_bytes_max;
	uint32_t local_segments_max;
	uint32_t remote_segments_max;
	uint32_t mr_mode;
	uint8_t can_read;
	/* Buffers of this side must be registered. */
	uint8_t local_registration;
	/* Registrations belong to one endpoint. */
	uint8_t endpoint_registration;
	/* Registered pages stay where they are. */
	uint8_t pinned_registration;
	uint8_t manual_progress;
	char provider[RF_NAME_BYTES];
	char domain[RF_NAME_BYTES];
	char fabric[RF_NAME_BYTES];
};

/* One contiguous piece of a read. */
struct rf_segment {
	void *local;
	uint64_t remote;
	uint64_t bytes;
};

/* How a peer names registered memory. */
struct rf_key {
	uint64_t base;
	uint32_t bytes;
	uint8_t key[RF_KEY_BYTES];
};

struct rf_completion {
	void *context;
	uint64_t bytes;
	/* 0, or a positive error number. */
	int32_t error;
	int32_t provider_error;
};

/* Loads libfabric for the rest of the process's life: a provider's threads may run until then. On failure `why` says what is missing. */
int rf_load(const char *path, struct rf_library **library, char *why, size_t why_bytes);
uint32_t rf_version(const struct rf_library *library);
const char *rf_strerror(const struct rf_library *library, int error);

/* The first match of `provider`, on `domain` (or any, where null), bound to the address `source` (or any). With reads, or messages only. */
int rf_find(const struct rf_library *library, const char *provider, const char *domain, const char *source, int reads,
	    struct fi_info **info);
void rf_describe(const struct fi_info *info, struct rf_limits *limits);
void rf_free(const struct rf_library *library, struct fi_info *info);

/* Takes the info over, also where it fails. */
int rf_domain_open(const struct rf_library *library, struct fi_info *info, struct rf_domain **domain);
int rf_domain_close(struct rf_domain *domain);

/* An endpoint with a completion queue and an address vector of its own. */
int rf_endpoint_open(struct rf_domain *domain, uint64_t completions, struct rf_endpoint **endpoint);
/* Discards what is under way: when it returns 0, no buffer of the endpoint's operations is touched any more. */
int rf_endpoint_close(struct rf_endpoint *endpoint);
/* The descriptor that is readable when something completes, or -1 where the provider has none. */
int rf_endpoint_descriptor(const struct rf_endpoint *endpoint);
/* 0 where waiting on the descriptor misses nothing; otherwise progress must be made first. */
int rf_endpoint_may_wait(struct rf_endpoint *endpoint);
int rf_endpoint_name(struct rf_endpoint *endpoint, void *name, size_t *bytes);
int rf_endpoint_resolve(struct rf_endpoint *endpoint, const void *name, uint64_t *address);
int rf_endpoint_forget(struct rf_endpoint *endpoint, uint64_t address);

/* `endpoint` is needed where registrations belong to endpoints. `wanted_key` is taken where the provider makes none itself. */
int rf_register(struct rf_domain *domain, struct rf_endpoint *endpoint, void *base, size_t bytes, uint32_t access,
		uint64_t wanted_key, struct rf_region **region);
int rf_deregister(struct rf_region *region);
int rf_region_key(struct rf_region *region, struct rf_key *key);
void *rf_region_descriptor(struct rf_region *region);
/* Turns a peer's key into one that reads of this domain name. */
int rf_key_import(struct rf_domain *domain, const struct rf_key *key, uint64_t *imported);
void rf_key_release(struct rf_domain *domain, uint64_t imported);

/* Starts a read of up to RF_SEGMENTS_MAX segments. With `more`, the caller promises to post again before it waits. */
int rf_read(struct rf_endpoint *endpoint, const struct rf_segment *segments, size_t count, void *descriptor,
	    uint64_t address, uint64_t key, void *context, int more);
int rf_send(struct rf_endpoint *endpoint, const void *bytes, size_t count, void *descriptor, uint64_t address,
	    void *context);
int rf_receive(struct rf_endpoint *endpoint, void *bytes, size_t count, void *descriptor, void *context);
/* Makes progress and returns the number of completions, up to `max`, or a negative error. */
int rf_poll(struct rf_endpoint *endpoint, struct rf_completion *completions, size_t max);

#endif
