/*
 * lazyrestore: memory checkpoints that open at once.
 *
 * The one public header of liblazyrestore. An image (see docs/format.md) holds the compressed pages
 * of memory regions; a session restores them lazily into this process: pages arrive when they are
 * first touched.
 *
 *     lr_image *image; lr_session *session; void *data;
 *     if (lr_image_open("state.lzr", &image, NULL) == LR_OK
 *         && lr_session_open(image, NULL, &session, NULL) == LR_OK
 *         && lr_session_map(session, 0, &data, NULL) == LR_OK)
 *             use(data);
 *
 * Conventions. Functions return LR_OK (0) or more, or a negative LR_ERR_* code that lr_strerror()
 * puts into words. Where a function takes `struct lr_problem *ret_problem` it may be NULL; it is
 * filled on failure only, and says where. Closing functions take NULL. Sizes and offsets are bytes,
 * times are nanoseconds, unless the name says otherwise. The library never calls back, never
 * touches the memory that it restores, and never prints or exits (unless LR_ON_ERROR_ABORT asks
 * for it).
 *
 * Threads. An lr_image may be used by any number of threads at once; so may an lr_session, but for
 * open and close. A child of fork() has the sessions of its parent and goes on by itself (but not
 * one of a bare clone(2): a touch of a region there gives SIGSEGV). An lr_reader, lr_freeze or
 * lr_seen belongs to one thread at a time.
 */
#ifndef LAZYRESTORE_H
#define LAZYRESTORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The library is compiled with hidden visibility: what is declared here is all that it exports. */
#pragma GCC visibility push(default)

/* What stands between the next marker and its end is also the cffi binding's cdef: plain
 * declarations only. */
/* cffi: begin */

/* ---- Errors ---- */

enum lr_error {
	LR_OK = 0,
	LR_ERR_ARGUMENT = -1,    /* the caller passed something that cannot be */
	LR_ERR_NOMEM = -2,       /* out of memory or address space */
	LR_ERR_IO = -3,          /* reading failed; os_error says how */
	LR_ERR_NOT_FOUND = -4,   /* no such file, process or region */
	LR_ERR_PERMISSION = -5,  /* the kernel refused: rights are missing */
	LR_ERR_UNSUPPORTED = -6, /* the kernel lacks something that is needed */
	LR_ERR_BUSY = -7,        /* another userfaultfd holds the range, or the address is taken */
	LR_ERR_TIMEOUT = -8,     /* not done before the deadline */
	LR_ERR_NO_ZSTD = -9,     /* libzstd.so.1 could not be loaded */
	LR_ERR_SYSTEM = -10,     /* another system call failed; os_error says how */
	LR_ERR_GONE = -11,       /* the process ended, or its memory is gone */
	LR_ERR_LIMIT = -12,      /* out of file descriptors, mappings or threads */
	LR_ERR_CLOSED = -13,     /* the region was detached from its session */
	LR_ERR_PAGE_SIZE = -14,  /* this kernel's pages are larger than the image's clusters */
	LR_ERR_STATE = -15,      /* a peer's state is damaged, or belongs to another image */
	LR_ERR_REFUSED = -16,    /* the service refused; lr_attach_get_refusal says why */
	LR_ERR_PROTOCOL = -17,   /* what answers at that socket is not a service of ours */

	LR_ERR_EMPTY = -20,     /* the file is empty */
	LR_ERR_MAGIC = -21,     /* the file does not begin as an image */
	LR_ERR_TRUNCATED = -22, /* begins as an image but has no footer: cut short */
	LR_ERR_FOOTER = -23,    /* the footer's checksum or contents are wrong */
	LR_ERR_VERSION = -24,   /* made by a newer version */
	LR_ERR_FEATURE = -25,   /* uses a feature that this version does not know */
	LR_ERR_HEADER = -26,    /* the header's checksum or contents are wrong */
	LR_ERR_ROOT = -27,      /* the root's checksum or contents are wrong */
	LR_ERR_METADATA = -28,  /* the metadata's checksum or place is wrong */
	LR_ERR_NODE = -29,      /* an index node's checksum or contents are wrong */
	LR_ERR_ENTRY = -30,     /* an index entry contradicts itself or points outside the file */
	LR_ERR_SHORT = -31,     /* the file ended where a cluster or node should be: it shrank */
	LR_ERR_CHECKSUM = -32,  /* a cluster's checksum is wrong */
	LR_ERR_FRAME = -33,     /* a cluster's zstd frame does not decode to what it should */
	LR_ERR_FILES = -34,     /* the record of files is damaged */
};

struct lr_problem {
	int32_t code;         /* LR_ERR_* */
	int32_t os_error;     /* errno, or 0 */
	uint64_t cluster;     /* number of the cluster, or UINT64_MAX */
	uint64_t file_offset; /* offset in the image, or UINT64_MAX */
};

/* One sentence for a code: what is wrong. Never NULL. */
const char *lr_strerror(int code);
/* The code's own name, as "LR_ERR_TRUNCATED". Never NULL. */
const char *lr_error_name(int code);
/* The library's version, as "0.1.0". */
const char *lr_version(void);
/* SHA-256 in hex of the header that the library was built from: a binding compares it with its own.
 */
const char *lr_header_hash(void);
/* Load libzstd now rather than with the first image. 0, or LR_ERR_NO_ZSTD. */
int lr_init(void);

/* ---- Images ---- */

typedef struct lr_image lr_image;

enum lr_page_state { LR_PAGE_HOLE = 0, LR_PAGE_ZERO = 1, LR_PAGE_DATA = 2 };

enum lr_cluster_kind {
	LR_CLUSTER_HOLE = 0,
	LR_CLUSTER_ZERO = 1,
	LR_CLUSTER_ZSTD = 2,
	LR_CLUSTER_RAW = 3,
	LR_CLUSTER_MIXED = 4, /* holes and zero pages, no data */
};

struct lr_image_info {
	uint32_t version;
	uint32_t page_size;
	uint32_t cluster_size;
	uint32_t region_count;
	uint64_t cluster_count;
	uint64_t stored_clusters;
	uint64_t logical_bytes;
	uint64_t file_bytes;
	uint64_t payload_bytes;
	uint64_t zero_bytes;
	uint64_t hole_bytes;
	uint64_t duplicate_bytes;
	uint64_t critical;
	uint64_t compatible;
	uint64_t header_bytes;
	uint64_t metadata_offset;
	uint64_t metadata_bytes;
	uint64_t bytes_read_at_open;
	uint32_t metadata_crc32c; /* of the metadata, for who reads it */
	uint32_t reserved;
	uint8_t digest[32];
	uint8_t id[16];
	uint64_t files_offset; /* of the record of files, compressed; 0: there is none */
	uint32_t files_bytes;
	uint32_t files_content_bytes; /* decoded */
	uint32_t files_crc32c;
	uint32_t reserved_2;
};

struct lr_region_info {
	uint64_t address;
	uint64_t length;
	uint64_t first_cluster;
	uint64_t cluster_count;
	uint32_t protection;
	uint32_t flags;
	uint32_t name_bytes;
	uint32_t planes;  /* as lr_cluster_info.planes: that of its first cluster that has any, or 0
			   */
	const char *name; /* UTF-8, not terminated; lives as long as the image */
};

struct lr_cluster_info {
	uint64_t cluster;
	uint64_t payload_offset; /* 0 where nothing is stored */
	uint32_t payload_bytes;
	uint32_t crc32c;
	uint32_t kind; /* enum lr_cluster_kind */
	uint32_t
		planes; /* 0, or the bytes of the numbers that are stored as byte planes: 2, 4, 8 */
	uint32_t data_pages;
	uint32_t pages; /* pages of the region in this cluster */
	uint32_t state_words;
	uint32_t reserved;
	uint64_t states[16]; /* two bits a page, as in docs/format.md */
	uint64_t run; /* clusters from here on that are alike without looking further: 1, or more
		       * where the index has one entry for many all-zero or hole clusters */
};

/* Open and validate: reads the header, and what stands at the end, whatever the size. */
int lr_image_open(const char *path, lr_image **ret_image, struct lr_problem *ret_problem);
/* Readers and sessions of it go on; the file is closed with the last of them. */
void lr_image_close(lr_image *image);
void lr_image_get_info(const lr_image *image, struct lr_image_info *ret_info);
int lr_image_get_region(const lr_image *image, uint32_t region, struct lr_region_info *ret_info);
/* The regions as docs/format.md lays them out, 96 bytes each, and behind them their names: checked
 * when the image was opened. Lives as long as the image. */
const void *lr_image_get_table(const lr_image *image, size_t *ret_bytes);
/* Number of the region with that name, or LR_ERR_NOT_FOUND. */
int64_t lr_image_find_region(const lr_image *image, const char *name, size_t name_bytes);
/* Read part of the file as it is (header, metadata): checks nothing but the bounds. */
int lr_image_read_raw(const lr_image *image, uint64_t offset, void *ret_data, uint64_t bytes,
		      struct lr_problem *ret_problem);
/* Decode the record of files, a msgpack map: ret_data has room for info.files_content_bytes.
 * LR_ERR_FILES; LR_ERR_NOT_FOUND where there is none. */
int lr_image_get_files(const lr_image *image, void *ret_data, struct lr_problem *ret_problem);

/* ---- Reading without userfaultfd ---- */

typedef struct lr_reader lr_reader;

int lr_reader_open(const lr_image *image, lr_reader **ret_reader);
void lr_reader_close(lr_reader *reader);
/* Look one cluster up in the index. */
int lr_reader_get_cluster(lr_reader *reader, uint64_t cluster, struct lr_cluster_info *ret_info,
			  struct lr_problem *ret_problem);
/* Decode a cluster's data pages, one after another: ret_data has room for cluster_size bytes.
 * Returns the number of bytes (0 where the cluster has no data). */
int64_t lr_reader_get_data(lr_reader *reader, uint64_t cluster, void *ret_data,
			   struct lr_problem *ret_problem);
/* Copy part of a region. Zero pages and holes are written as zeros, unless `skip_zeros` says that
 * ret_data is known to be zero (fresh anonymous memory) and is better not touched. */
int lr_reader_read(lr_reader *reader, uint32_t region, uint64_t offset, void *ret_data,
		   uint64_t bytes, int skip_zeros, struct lr_problem *ret_problem);

/* ---- The kernel's side ---- */

enum lr_privilege {
	LR_PRIVILEGE_FULL = 0, /* faults of system calls are served too */
	LR_PRIVILEGE_AUTO = 1, /* full, else user-mode-only */
	LR_PRIVILEGE_USER_MODE_ONLY = 2,
};

/* How a userfaultfd was, or would be, had. */
struct lr_uffd_probe {
	int32_t device_error;    /* errno of /dev/userfaultfd, 0: works */
	int32_t syscall_error;   /* errno of userfaultfd(2), 0: works */
	int32_t user_mode_error; /* errno of userfaultfd(2) with UFFD_USER_MODE_ONLY, 0: works */
	int32_t reserved;
	uint64_t features; /* what UFFDIO_API offers; 0 where there is no way to ask */
	uint64_t ioctls;
};
void lr_uffd_probe(struct lr_uffd_probe *ret_probe);

/* ---- Sessions: lazy restore into this process ---- */

typedef struct lr_session lr_session;

enum lr_on_error {
	LR_ON_ERROR_FENCE = 0, /* what cannot be loaded cannot be touched: SIGBUS, or SIGSEGV */
	LR_ON_ERROR_ABORT = 1, /* a message on stderr, and abort() */
	LR_ON_ERROR_HOLD = 2,  /* whoever touches it waits (lr_session_serve only) */
};

enum lr_granularity {
	LR_GRANULARITY_CLUSTER = 0, /* a touch brings all of its cluster: fewest faults */
	LR_GRANULARITY_PAGE = 1,    /* only the page: least memory; each decodes the cluster again,
				     * unless it was the last */
};

/* Who answers a fault. */
enum lr_fault_mode {
	LR_FAULT_THREAD = 0, /* the pager, a thread that has to be woken */
	/* The thread that touched, in a handler of SIGBUS: no thread is woken. For programs that
	 * never hand missing pages to system calls (those fail with EFAULT, or stop short:
	 * lr_session_populate first), nor touch any while SIGBUS is blocked (that kills). The
	 * program's own handler, if it was there before, gets what is not ours. */
	LR_FAULT_INLINE = 1,
};

struct lr_session_options {
	uint32_t privilege;     /* enum lr_privilege */
	uint32_t trace_records; /* room for the trace, a power of two; 0: no trace */
	uint32_t on_error;      /* enum lr_on_error */
	uint32_t granularity;   /* enum lr_granularity */
	uint32_t record;        /* nonzero: note which clusters are touched */
	uint32_t fault_mode;    /* enum lr_fault_mode */
};

#define LR_HISTOGRAM_BUCKETS 320

/* Latencies, eight buckets to a power of two: bucket b counts v ns where b = v for v < 8, else with
 * e = floor(log2 v): b = 8 (e - 2) + (the three bits of v below its highest). What is longer than
 * the last bucket's start is in it. */
struct lr_histogram {
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	uint64_t buckets[LR_HISTOGRAM_BUCKETS];
};

struct lr_session_stats {
	uint64_t faults;       /* faults answered */
	uint64_t pages_copied; /* installed by UFFDIO_COPY or MOVE, for whatever reason */
	uint64_t pages_zeroed; /* installed by UFFDIO_ZEROPAGE */
	uint64_t clusters_decoded;
	uint64_t payload_bytes_read;
	uint64_t errors;
	uint64_t trace_lost;
	uint64_t features;  /* userfaultfd features in use */
	uint32_t privilege; /* LR_PRIVILEGE_FULL or LR_PRIVILEGE_USER_MODE_ONLY: what was had */
	uint32_t regions_attached; /* and not plain memory yet */
	uint32_t fill;             /* enum lr_fill_state */
	uint32_t is_gone;       /* nonzero: the peer's address space is gone (lr_session_serve) */
	uint64_t pages_total;   /* of this machine, in attached regions (served ones: in ranges) */
	uint64_t pages_missing; /* those of them that were neither loaded nor given up */
	uint64_t answers[2][5]; /* faults of reads [0] and of writes [1], by enum lr_action */
	struct lr_histogram service; /* message read to touched page installed */
};

struct lr_load_error {
	uint32_t region;
	int32_t code;
	int32_t os_error;
	int32_t fenced;  /* 1: poisoned (SIGBUS), 2: no access (SIGSEGV) */
	uint64_t offset; /* in the region */
	uint64_t length;
	uint64_t cluster;
	uint64_t file_offset;
};

enum lr_fill_state {
	LR_FILL_NONE = 0,
	LR_FILL_RUNNING = 1,
	LR_FILL_COMPLETE = 2, /* all was loaded that could be */
	LR_FILL_STOPPED = 3,  /* short of the memory's limit: the rest comes when touched */
};

/* A cluster that was touched. */
struct lr_touched {
	uint64_t cluster; /* UINT64_MAX: not known (in a child, of the moment of the fork) */
	uint64_t time_ns; /* of its first touch, since the session was opened */
};

enum lr_action {
	LR_ACTION_COPY = 1,
	LR_ACTION_ZEROPAGE = 2,
	LR_ACTION_FENCE = 3,
	LR_ACTION_WAKE = 4
};

struct lr_trace_record {
	uint64_t time_ns;    /* CLOCK_MONOTONIC, when the message was read */
	uint64_t address;    /* exact where the kernel tells it, else of the page */
	uint64_t offset;     /* of the page, in the region */
	uint64_t bytes;      /* installed */
	uint32_t latency_ns; /* message read to page installed */
	uint32_t thread;     /* 0 where the kernel does not tell */
	uint32_t region;
	uint16_t action; /* enum lr_action */
	uint16_t is_write;
};

/* Make a session and start its pager. `options` may be NULL. */
int lr_session_open(const lr_image *image, const struct lr_session_options *options,
		    lr_session **ret_session, struct lr_problem *ret_problem);
/* Map a region at an address of the kernel's choice, and restore it lazily. Unmapped by
 * lr_session_close; so it stays registered, also when a fill has brought all of it. */
int lr_session_map(lr_session *session, uint32_t region, void **ret_address,
		   struct lr_problem *ret_problem);
/* Restore a region lazily into memory of the caller's: an empty private anonymous mapping of its
 * length. */
int lr_session_attach(lr_session *session, uint32_t region, void *address,
		      struct lr_problem *ret_problem);
/* Stop installing pages in a region and wait until none is under way; faults wait. For unmapping
 * it: afterwards either detach (the memory is gone) or resume (it stayed after all). */
int lr_session_suspend(lr_session *session, uint32_t region);
int lr_session_resume(lr_session *session, uint32_t region);
int lr_session_detach(lr_session *session, uint32_t region);
/* Load a range now. timeout_ns < 0: no limit. LR_ERR_TIMEOUT: call again to go on; *ret_done says
 * how far it came. */
int lr_session_populate(lr_session *session, uint32_t region, uint64_t offset, uint64_t length,
			int64_t timeout_ns, uint64_t *ret_done, struct lr_problem *ret_problem);

struct lr_fill_options {
	/* Clusters to load before all else, in this order, or NULL; copied. */
	const uint64_t *first;
	uint64_t first_count;
	uint32_t first_only; /* nonzero: nothing else afterwards */
	uint32_t threads;    /* 0: one a processor that this process may use */
	uint32_t is_awaited; /* nonzero: the caller does nothing more until `first` is there */
	uint32_t reserved;
};

/* Load all attached regions in the background, by threads that stop short of a memory limit, at the
 * lowest priority; those of `first` at the caller's where he waits for them. `options` may be NULL:
 * everything. Once a session: LR_ERR_BUSY. LR_ERR_ARGUMENT where `first` has a cluster that is not
 * in the image, or more than are in it. */
int lr_session_fill(lr_session *session, const struct lr_fill_options *options);
/* The same for `first` alone, which may be nothing. */
int lr_session_wait_first(lr_session *session, int64_t timeout_ns);
/* Wait for the fill. LR_OK: complete; LR_ERR_TIMEOUT; LR_ERR_NOMEM: it stopped short;
 * LR_ERR_ARGUMENT: none was started. timeout_ns < 0: no limit. */
int lr_session_wait(lr_session *session, int64_t timeout_ns);
void lr_session_get_stats(lr_session *session, struct lr_session_stats *ret_stats);
/* Copy errors from number `first` on; returns how many were copied. The first 1024 are kept. */
uint32_t lr_session_get_errors(lr_session *session, uint64_t first,
			       struct lr_load_error *ret_errors, uint32_t room);
/* Copy the clusters that were touched, in order of their first touch, from number `first` on;
 * returns how many were copied. Only touches that had to be waited for: what was loaded ahead is
 * not among them. At most 2^24 are kept; none unless options.record said so. */
uint64_t lr_session_get_touched(lr_session *session, uint64_t first, struct lr_touched *ret_touched,
				uint64_t room);
/* Take trace records, oldest first; waits up to timeout_ns for one. Returns how many. One reader at
 * a time. */
uint32_t lr_session_read_trace(lr_session *session, struct lr_trace_record *ret_records,
			       uint32_t room, int64_t timeout_ns);
/* End it. Regions that lr_session_map mapped are unmapped; memory that was attached stays, and what
 * it misses is fenced: a touch gives SIGBUS (SIGSEGV before Linux 6.6), never zeros. */
void lr_session_close(lr_session *session);

/* ---- Serving: lazy restore into another process ---- */

/* Where part of a region lies in a peer, the process whose memory it is. The peer has registered it
 * with its userfaultfd for missing pages. */
struct lr_peer_range {
	uint64_t address; /* in the peer */
	uint64_t bytes;
	uint64_t offset; /* in the region, of `address` */
	uint32_t region;
	uint32_t reserved;
};

struct lr_serve_options {
	int32_t uffd;     /* a peer's userfaultfd; copied */
	int32_t state;    /* by lr_serve_state; copied; -1: none is kept */
	int32_t pid;      /* the peer's, as seen here; 0: not known */
	int32_t event_fd; /* an eventfd that is written to when a load failed, a fill ended, a child
			   * was forked, or the peer's memory is gone; -1: none; copied */
	uint32_t page_size;     /* of the peer's memory in these ranges: this machine's, or 2 MiB
				 * (hugetlb); 0: this machine's */
	uint32_t on_error;      /* enum lr_on_error: FENCE or HOLD */
	uint32_t granularity;   /* enum lr_granularity */
	uint32_t record;        /* nonzero: note which clusters are touched */
	uint32_t trace_records; /* as in struct lr_session_options */
	uint32_t flags;         /* LR_SERVE_* */
	const struct lr_peer_range *ranges; /* not looked at where the state has some */
	uint64_t range_count;
};

/* The peer is a process that is being restored as a whole, as by CRIU. All of its private memory is
 * registered: what is in no range is zeros, and there may be no range at all. It is mapped and
 * registered by and by: until lr_session_settle what is not there is not there yet, rather than
 * given up; only what is touched is loaded until then, and fill and populate are LR_ERR_BUSY. When
 * a fill is complete nothing is unregistered: close the userfaultfd, all copies of it. */
#define LR_SERVE_ZERO_OUTSIDE 1
/* Its userfaultfd tells of forks (UFFD_FEATURE_EVENT_FORK), and whoever serves takes care of the
 * children: lr_session_next_child. Needs a state. This process must not close descriptors that it
 * does not know. */
#define LR_SERVE_CHILDREN 2

/* What is known of a peer's pages, as a sealed memory file. Whoever keeps the descriptor can go on
 * serving where this process ends: nothing of it is lost, whenever that is. `page_size` as in
 * struct lr_serve_options. */
int lr_serve_state(const lr_image *image, uint32_t page_size, int32_t *ret_fd,
		   struct lr_problem *ret_problem);
/* Serve a peer's faults, and have whoever waits there ask again. The state need not be trusted.
 * LR_ERR_ARGUMENT: not a userfaultfd that was initialised, or a range that overlaps with another
 * (in the peer or in its region), is not aligned, lies outside of the region or is not registered;
 * LR_ERR_STATE; LR_ERR_BUSY: another process serves by this state, still; LR_ERR_GONE: the peer
 * ended; LR_ERR_UNSUPPORTED: a userfaultfd that tells of forks (without LR_SERVE_CHILDREN), or
 * answers by signals.
 *
 * The session does all that others do, but for map, attach, suspend, resume and detach. A fill that
 * has brought everything unregisters the ranges: the peer needs nobody any more. lr_session_close
 * stops serving and leaves all as it is: whoever touches what is missing waits, until somebody
 * serves again, or the last copy of the userfaultfd is closed and reads as zeros what is missing. A
 * child of fork() has nothing of it. */
int lr_session_serve(const lr_image *image, const struct lr_serve_options *options,
		     lr_session **ret_session, struct lr_problem *ret_problem);
/* Have all who wait for a page ask again, and what could not be loaded tried again. */
int lr_session_retry(lr_session *session);
/* All of the peer's memory is mapped and registered now. The state remembers it, also for children.
 */
int lr_session_settle(lr_session *session);

/* A child that a peer forked: a userfaultfd for its copy of the memory, and a state that has what
 * was known of it at that moment. It is served by lr_session_serve, as any peer, with the same
 * flags and no ranges; until then it waits wherever it misses a page. When all of the parent's
 * memory had come it needs nobody, and is not told of. */
struct lr_child {
	int32_t uffd;    /* close-on-exec; -1: it is not to be had any more (lr_state_set_child) */
	int32_t state;   /* close-on-exec; -1: not made yet (lr_state_children only) */
	uint32_t number; /* of this child of this peer: never 0 */
	uint32_t reserved;
};

/* How many children may be pending: not said to be kept. When there are as many, no message of the
 * peer's is read: its threads wait, in fork() and for pages. */
#define LR_CHILDREN_MAX 64

/* The next child, in the order in which they were forked: 1, or 0 where there is none. event_fd is
 * written to for each. The descriptors are the caller's, but are not to be closed before
 * lr_session_child_is_kept: until then the state has their numbers, for a successor. If the last
 * copy of the userfaultfd is closed before all was loaded, the child reads zeros. */
int lr_session_next_child(lr_session *session, struct lr_child *ret_child);
/* Somebody else has copies of a child's descriptors: the state may forget it. LR_ERR_NOT_FOUND
 * where there is no child of this number that was taken. */
int lr_session_child_is_kept(lr_session *session, uint32_t number);
/* For a successor, before it serves by a state: the children that were pending when the predecessor
 * died, and those of which it had just read. The descriptors are numbers in the predecessor's
 * table. Returns how many there are (`room` of LR_CHILDREN_MAX is enough); LR_ERR_STATE. */
int lr_state_children(int32_t state, struct lr_child *ret_children, uint32_t room);
/* Put this process's own descriptors for one of those (-1 where it has none): lr_session_serve then
 * makes the states that are missing, and lr_session_next_child tells of them all. LR_ERR_NOT_FOUND.
 */
int lr_state_set_child(int32_t state, const struct lr_child *child);

/* ---- Attaching: memory of this process that a service restores ---- */

/* `lazyrestore serve` has the image; this process has the memory, and hands its userfaultfd over.
 * Each region is mapped anew, and not in children: they get SIGSEGV. A thread of the library's
 * watches the connection. When nobody serves any more it tries to go on with whoever listens at the
 * socket next, and when that does not come to pass within the deadline, what is missing is fenced:
 * a touch gives SIGBUS (SIGSEGV before Linux 6.6), never zeros.
 *
 * Pages may be given up (madvise). The regions that lr_attach mapped are unmapped by lr_detach, and
 * by nobody else. munmap and madvise wait until the service has noticed; if there is none, until
 * the deadline. */
typedef struct lr_attachment lr_attachment;

enum lr_attachment_state {
	LR_ATTACHMENT_CONNECTED = 0, /* not started yet */
	LR_ATTACHMENT_SERVED = 1,
	LR_ATTACHMENT_RESUMING = 2, /* nobody serves: the next service is waited for */
	LR_ATTACHMENT_COMPLETE = 3, /* all was loaded: ordinary memory from now on */
	LR_ATTACHMENT_FENCED = 4,   /* nobody came: what was missing cannot be touched */
	LR_ATTACHMENT_CLOSED = 5,   /* this is a child of the process that attached */
};

/* Why a service refuses. Others may be added. */
enum lr_refusal {
	LR_REFUSAL_NONE = 0,
	LR_REFUSAL_PROTOCOL = 1, /* a message is not as it should be, or of an unknown version */
	LR_REFUSAL_USER = 2,     /* this user is not admitted */
	LR_REFUSAL_IMAGE = 3,    /* the image cannot be read, or is another one than before */
	LR_REFUSAL_RANGES = 4,   /* these ranges cannot be served */
	LR_REFUSAL_STATE = 5,    /* what was handed over to resume is not usable */
	LR_REFUSAL_LIMIT = 6,    /* too many peers, or too little of something */
	LR_REFUSAL_STOPPING = 7, /* the service ends */
	LR_REFUSAL_FAILED = 8,   /* something else went wrong there */
};

#define LR_ATTACH_METADATA 1 /* lr_attach_options.flags: lr_attachment_get_metadata is wanted */

struct lr_attach_options {
	uint32_t privilege;   /* enum lr_privilege */
	uint32_t deadline_ms; /* to be served, and to be served again; 0: 5000 */
	uint32_t flags;       /* LR_ATTACH_* */
	uint32_t reserved;
};

struct lr_attachment_info {
	uint32_t region_count;
	uint32_t page_size; /* of the image */
	uint32_t cluster_size;
	uint32_t privilege; /* LR_PRIVILEGE_FULL or LR_PRIVILEGE_USER_MODE_ONLY: what was had */
	uint32_t state;     /* enum lr_attachment_state */
	uint32_t resumes;   /* how often another service went on with it */
	uint64_t features;  /* userfaultfd features in use */
	uint8_t digest[32]; /* of the image */
};

/* Map all regions. `socket`: its path, or NULL for the environment's LAZYRESTORE_SOCKET. A service
 * that is not there yet is waited for until the deadline. LR_ERR_REFUSED, LR_ERR_PROTOCOL,
 * LR_ERR_TIMEOUT, LR_ERR_NOT_FOUND (nothing listens there), LR_ERR_PERMISSION. `options` may be
 * NULL. */
int lr_attach(const char *socket, const struct lr_attach_options *options,
	      lr_attachment **ret_attachment, struct lr_problem *ret_problem);
/* What the service said when it last refused a call of this thread: a sentence, or "". Never NULL;
 * valid until the thread's next. ret_code, which may be NULL, gets the enum lr_refusal. */
const char *lr_attach_get_refusal(uint32_t *ret_code);

void lr_attachment_get_info(const lr_attachment *attachment, struct lr_attachment_info *ret_info);
uint32_t lr_attachment_get_region_count(const lr_attachment *attachment);
/* As lr_image_get_region, but for clusters and flags, which are 0. */
int lr_attachment_get_region(const lr_attachment *attachment, uint32_t region,
			     struct lr_region_info *ret_info);
/* The number of the region with that name (terminated), or LR_ERR_NOT_FOUND. */
int lr_attachment_find(const lr_attachment *attachment, const char *name, uint32_t *ret_region);
/* Where a region lies; NULL where its length is 0, or it is not mapped. */
void *lr_attachment_get_address(const lr_attachment *attachment, uint32_t region);
/* enum lr_attachment_state */
uint32_t lr_attachment_get_state(const lr_attachment *attachment);
/* Until all was loaded (LR_OK) or nobody serves any more for good (LR_ERR_GONE). LR_ERR_TIMEOUT;
 * LR_ERR_CLOSED where it was not started. timeout_ns < 0: no limit. */
int lr_attachment_wait(const lr_attachment *attachment, int64_t timeout_ns);
/* The regions' metadata, a msgpack array as in the image; NULL without LR_ATTACH_METADATA. */
const void *lr_attachment_get_metadata(const lr_attachment *attachment, uint64_t *ret_bytes);
/* End it: the regions that it mapped are unmapped. Memory that was added is emptied, and no longer
 * accessible. Takes NULL. */
void lr_detach(lr_attachment *attachment);

/* For who maps by himself: connect; add memory (empty, private, anonymous, of a region's length);
 * start. All regions that are to be served are added before the start, by one thread. */
int lr_attach_connect(const char *socket, const struct lr_attach_options *options,
		      lr_attachment **ret_attachment, struct lr_problem *ret_problem);
int lr_attachment_add(lr_attachment *attachment, uint32_t region, void *address,
		      struct lr_problem *ret_problem);
int lr_attachment_start(lr_attachment *attachment, struct lr_problem *ret_problem);
/* Memory that was added: its owner is about to unmap it (while it is served), and nothing is done
 * to it by lr_detach. */
int lr_attachment_forget(lr_attachment *attachment, uint32_t region);
/* It was not unmapped after all. */
int lr_attachment_remember(lr_attachment *attachment, uint32_t region);
/* The same, but it is emptied and made inaccessible here: its owner may unmap it at any time, also
 * after lr_detach. */
int lr_attachment_release(lr_attachment *attachment, uint32_t region);

/* ---- The warden of what this process serves ---- */

/* A process that shares this one's descriptor table: while it lives, no descriptor here is closed
 * by this process's end. When this process has ended (not by lr_warden_close) and its keeper, too,
 * or it has none, the warden ends the tasks that it was told of and all that descends from them,
 * and whoever touches what is missing behind a userfaultfd that is left gets SIGBUS, until the
 * memory is gone. Where the keeper lives, it gives that what it asks for (csrc/warden.h). */
typedef struct lr_warden lr_warden;

struct lr_warden_info {
	int32_t pid;        /* 0: there is none now */
	int32_t pidfd;      /* becomes readable when it has ended: lr_warden_start makes another */
	int32_t second_pid; /* there are two of them: one sleeps until the other has ended */
	int32_t second_pidfd; /* the same */
	int32_t page;         /* for the keeper: a memory file that says what there is */
	int32_t socket;       /* for the keeper: where it asks */
};

/* `kills`: nonzero: tasks are ended where nobody serves them; else they get SIGBUS, too. */
int lr_warden_open(uint32_t kills, lr_warden **ret_warden, struct lr_problem *ret_problem);
/* Make the processes, unless they are there: also after one was killed. For one thread at a time,
 * like all of these. */
int lr_warden_start(lr_warden *warden, struct lr_problem *ret_problem);
void lr_warden_get_info(const lr_warden *warden, struct lr_warden_info *ret_info);
/* A pidfd of who takes over when this process ends, lent; -1: there is nobody. */
void lr_warden_set_keeper(lr_warden *warden, int32_t pidfd);
/* A task, by its number and a pidfd, lent. LR_ERR_LIMIT: there are too many. */
int lr_warden_add(lr_warden *warden, int32_t pid, int32_t pidfd);
/* Before that pidfd is closed. */
void lr_warden_remove(lr_warden *warden, int32_t pidfd);
/* Memory that nobody serves any more, of nobody knows whom: who touches what is missing there gets
 * SIGBUS, also after this process's end. The userfaultfd may be closed when this returns. */
int lr_warden_bury_one(lr_warden *warden, int32_t uffd);
/* End the warden, and wait for that: there is nothing that it is needed for. Takes NULL. */
void lr_warden_close(lr_warden *warden);

/* ---- Touching, for measurements ---- */

enum lr_touch_order { LR_TOUCH_SEQUENTIAL = 0, LR_TOUCH_RANDOM = 1 };

/* What ret_latency_ns has for a page whose touch raised SIGBUS or SIGSEGV: it is fenced. */
#define LR_TOUCH_FAILED 4294967295

/* Read one byte of different pages of a mapping: numbers `first` to first + count - 1 of its pages,
 * counted in order of address or in the random permutation that belongs to `seed`. ret_latency_ns
 * (room for count, or NULL) gets what each touch that took a page fault waited, 0 for the others,
 * and LR_TOUCH_FAILED for pages that cannot be read: while it runs, SIGBUS and SIGSEGV are handled
 * for what this thread touches here; those of anyone else go to the handlers that were there. With
 * NULL nothing is handled. Returns the number of pages, failed ones included. */
uint64_t lr_touch(const void *address, uint64_t length, uint32_t page_size, uint32_t order,
		  uint64_t seed, uint64_t first, uint64_t count, uint32_t *ret_latency_ns);

/* ---- The machine, for measurements ---- */

struct lr_hello_options {
	uint64_t pages;
	uint32_t privilege; /* enum lr_privilege */
	uint32_t one_core;  /* nonzero: both threads on the core that the caller runs on */
	uint32_t is_write;  /* nonzero: pages are touched by writing */
	uint32_t zeropage;  /* nonzero: answered by ZEROPAGE */
};

/* The least that a demand fault costs by userfaultfd: a thread touches fresh pages in order of
 * address, another polls, and answers each with a COPY of one ready page. ret_latency_ns (room for
 * options->pages) gets what each touch took. */
int lr_hello(const struct lr_hello_options *options, uint32_t *ret_latency_ns,
	     struct lr_problem *ret_problem);

/* What it takes from one thread's waking another to that one's running: medians. 0: not measured,
 * there being only one core, or no right to what it takes. */
struct lr_wakeup_cost {
	uint64_t one_core_ns;   /* both on one core */
	uint64_t two_cores_ns;  /* each on a core that is idle, and may halt */
	uint64_t kept_awake_ns; /* the same with a thread at idle priority on each: none halts */
};
/* Takes limit_ns or a little more. */
int lr_wakeup_cost(uint64_t limit_ns, struct lr_wakeup_cost *ret_cost);

/* ---- Memory ---- */

/* Map empty private anonymous memory (NORESERVE) exactly at `address`: LR_ERR_BUSY if anything is
 * there. */
int lr_memory_map(uint64_t address, uint64_t length, struct lr_problem *ret_problem);
int lr_memory_unmap(uint64_t address, uint64_t length);
/* Bytes of this process's memory that are in private page frames or in swap: missing pages and the
 * kernel's own zero page cost nothing. Negative where /proc is not there. */
int64_t lr_memory_get_resident(uint64_t address, uint64_t length);

/* ---- For writers ---- */

uint32_t lr_crc32c(uint32_t crc, const void *data, uint64_t bytes);

#define LR_BLAKE3_BYTES 32
#define LR_BLAKE3_DEPTH 55

/* BLAKE3 of what is there as a whole, with the widest vectors that the machine has. */
void lr_blake3(const void *data, uint64_t bytes, uint8_t *ret_digest);

/* BLAKE3 of what comes in pieces, and in small ones: a chunk at a time. The caller's memory, and
 * one thread's at a time; what is in it is private. */
struct lr_blake3 {
	uint64_t chunks; /* whole ones, in the tree */
	uint32_t chunk_bytes;
	uint32_t depth;
	uint8_t chunk[1024];
	uint8_t stack[LR_BLAKE3_DEPTH * LR_BLAKE3_BYTES]; /* values of the tree without a partner */
};

void lr_blake3_begin(struct lr_blake3 *hash);
void lr_blake3_update(struct lr_blake3 *hash, const void *data, uint64_t bytes);
/* The digest of all so far; more may follow. */
void lr_blake3_get(const struct lr_blake3 *hash, uint8_t *ret_digest);

/* State of each page of a buffer: LR_PAGE_ZERO or LR_PAGE_DATA in ret_states (a byte a page). A
 * last page that is not whole counts as if filled with zeros. Returns the number of data pages. */
uint64_t lr_scan_pages(const void *data, uint64_t bytes, uint32_t page_size, uint8_t *ret_states);
/* Copy the data pages of a buffer one after another, the last padded with zeros; returns the bytes
 * written. */
uint64_t lr_gather_pages(const void *data, uint64_t bytes, uint32_t page_size,
			 const uint8_t *states, void *ret_data);
/* Byte planes: numbers of 2, 4 or 8 bytes with these grouped, all first bytes, then all second
 * bytes, and so on. `bytes` is a multiple of the width; both buffers have so many, and do not
 * overlap. Split makes planes of numbers, join makes numbers of planes. */
void lr_planes_split(const void *data, uint64_t bytes, uint32_t width_bytes, void *ret_planes);
void lr_planes_join(const void *planes, uint64_t bytes, uint32_t width_bytes, void *ret_data);

/* A table of the clusters that were already stored. It grows to max_bytes; then it forgets. */
typedef struct lr_seen lr_seen;
struct lr_stored_cluster {
	uint64_t payload_offset;
	uint32_t payload_bytes;
	uint32_t crc32c;
	uint32_t kind;
	uint32_t planes;
};
int lr_seen_open(uint64_t max_bytes, lr_seen **ret_seen);
void lr_seen_close(lr_seen *seen);
/* 1 and the place if a cluster with this digest (32 bytes) was put, else 0. May be called while one
 * other thread puts. */
int lr_seen_find(const lr_seen *seen, const uint8_t *digest, struct lr_stored_cluster *ret_stored);
void lr_seen_put(lr_seen *seen, const uint8_t *digest, const struct lr_stored_cluster *stored);

/* Leaf entries of the index (docs/format.md), those of a piece of memory at a time. From the states
 * of its pages, a byte a page: their states and kinds, LR_CLUSTER_ZSTD where there is data, whose
 * place is yet to be filled in; and the data pages of each. Returns the number of clusters. */
uint64_t lr_entries_make(const uint8_t *page_states, uint64_t pages, uint32_t pages_per_cluster,
			 void *ret_entries, uint32_t *ret_data_pages);
/* Fill in the place, length, checksum, kind and planes of those with data whose digest (32 bytes
 * each) was put. Returns how many that are. May be called while one other thread puts. */
uint64_t lr_entries_find(const lr_seen *seen, const uint8_t *digests, uint64_t count,
			 uint32_t pages_per_cluster, void *entries);
/* Give a place to those with data that have none, and whose length, checksum, kind and planes are
 * filled in: that of an equal cluster, or in a record of its own, the first one at `position` of
 * the file, which is then put, and marked in ret_is_new. Returns the position behind the last
 * record. */
uint64_t lr_entries_place(lr_seen *seen, const uint8_t *digests, uint64_t count,
			  uint32_t pages_per_cluster, uint64_t position, void *entries,
			  uint8_t *ret_is_new);
/* Have the kernel begin to write a part of a file to its disk, so that a later fsync has less to
 * wait for. A hint only: where it cannot be done, nothing is. */
void lr_file_start_writing(int fd, uint64_t offset, uint64_t bytes);

/* ---- Another process's memory ---- */

typedef struct lr_freeze lr_freeze;

/* Stop every thread of a process, from a thread that lives as long as the lr_freeze: if this
 * process dies, that one runs again. LR_ERR_NOT_FOUND, LR_ERR_PERMISSION, LR_ERR_GONE,
 * LR_ERR_TIMEOUT (a thread could not be stopped). */
int lr_freeze_open(int32_t pid, int64_t timeout_ns, lr_freeze **ret_freeze,
		   struct lr_problem *ret_problem);
/* Let it run. Returns for how long it was stopped, in nanoseconds. */
int64_t lr_freeze_close(lr_freeze *freeze);
/* 0 while the process is there and stopped, else LR_ERR_GONE. */
int lr_freeze_check(const lr_freeze *freeze);

/* Read memory of another process: process_vm_readv, else /proc/PID/mem. Stops short before the
 * first page that cannot be read; *ret_read says where (which may be 0). LR_ERR_GONE,
 * LR_ERR_PERMISSION. */
int lr_process_read(int32_t pid, uint64_t address, void *ret_data, uint64_t bytes,
		    uint64_t *ret_read, struct lr_problem *ret_problem);

struct lr_page_run {
	uint64_t start; /* address */
	uint64_t end;
};
/* Ranges of a process's memory that hold pages (present or in swap), ascending, by PAGEMAP_SCAN or
 * /proc/PID/pagemap. `pagemap_fd` is an open /proc/PID/pagemap. Fills up to `room` runs; *ret_next
 * is where to go on (= end when done). Returns the number of runs. */
int64_t lr_pagemap_runs(int pagemap_fd, uint64_t start, uint64_t end, struct lr_page_run *ret_runs,
			uint32_t room, uint64_t *ret_next, struct lr_problem *ret_problem);

/* cffi: end */

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
