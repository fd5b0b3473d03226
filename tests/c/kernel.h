/*
 * kernel: what the tests of the kernel's promises share. They use userfaultfd directly and nothing
 * of csrc/, so that they say what the kernel does, not what we believe. Include after check.h.
 *
 * What is needed and absent (a right, a feature) skips the case and says why.
 */
#ifndef LR_TESTS_KERNEL_H
#define LR_TESTS_KERNEL_H

#include "check.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* Newer than some systems' headers. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_FEATURE_EXACT_ADDRESS
#define UFFD_FEATURE_EXACT_ADDRESS (1 << 11)
#endif
#define KERNEL_FEATURE_POISON ((uint64_t)1 << 14)
#define KERNEL_IOCTL_POISON   0x08

struct kernel_poison {
	uint64_t start, length, mode;
	int64_t updated;
};
#define KERNEL_UFFDIO_POISON _IOWR(UFFDIO, KERNEL_IOCTL_POISON, struct kernel_poison)

#define KERNEL_PAGE    4096UL
#define KERNEL_WAIT_MS 5000

/* ---- Opening ------------------------------------------------------------------------- */

static inline int kernel_try_syscall(int flags)
{
	return (int)syscall(SYS_userfaultfd, flags);
}

static inline int kernel_try_device(int flags)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device == -1)
		return -1;
	int uffd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
	int error = errno;
	close(device);
	errno = error;
	return uffd;
}

static inline int kernel_try_full(int flags)
{
	int uffd = kernel_try_device(flags);
	return uffd != -1 ? uffd : kernel_try_syscall(flags);
}

/* A userfaultfd without the handshake, or skip. User-mode-only where there are no rights to more:
 * cases in which system calls fault start with kernel_need_full(). */
static inline int kernel_open_raw(int flags)
{
	if (sysconf(_SC_PAGESIZE) != (long)KERNEL_PAGE)
		SKIP("pages of %ld bytes: these tests know 4096", sysconf(_SC_PAGESIZE));
	int uffd = kernel_try_full(flags);
	if (uffd == -1)
		uffd = kernel_try_syscall(flags | UFFD_USER_MODE_ONLY);
	if (uffd == -1)
		SKIP("no userfaultfd here: %s", strerror(errno));
	return uffd;
}

static inline void kernel_need_full(void)
{
	int uffd = kernel_try_full(O_CLOEXEC);
	if (uffd == -1)
		SKIP("no rights to serve the faults of system calls: %s", strerror(errno));
	close(uffd);
}

static inline uint64_t kernel_features(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = kernel_open_raw(O_CLOEXEC);
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	close(uffd);
	return api.features;
}

/* A userfaultfd with these features, or skip. */
static inline int kernel_open_flags(int flags, uint64_t features)
{
	uint64_t missing = features & ~kernel_features();
	if (missing)
		SKIP("this kernel's userfaultfd lacks feature bits %#jx", (uintmax_t)missing);
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int uffd = kernel_open_raw(flags);
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	return uffd;
}

static inline int kernel_open(uint64_t features)
{
	return kernel_open_flags(O_CLOEXEC | O_NONBLOCK, features);
}

/* ---- Memory -------------------------------------------------------------------------- */

static inline uint8_t *kernel_map(size_t pages)
{
	void *memory = mmap(NULL, pages * KERNEL_PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		CHECK_FAIL("mmap: %s", strerror(errno));
	CHECK_CALL(madvise(memory, pages * KERNEL_PAGE, MADV_NOHUGEPAGE));
	return memory;
}

/* The bytes that page number `page` gets in these tests: never zero, different in each page. */
static inline void kernel_fill(uint8_t *ret_data, size_t page, size_t pages)
{
	for (size_t i = 0; i < pages * KERNEL_PAGE; i++) {
		size_t number = page + i / KERNEL_PAGE, at = i % KERNEL_PAGE;
		ret_data[i] = (uint8_t)(1 + (number * 7 + at) % 251);
	}
}

static inline int kernel_is_zero(const uint8_t *data, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if (data[i] != 0)
			return 0;
	return 1;
}

/* The entry of /proc/self/pagemap: 0 where nothing is mapped. */
static inline uint64_t kernel_pagemap(const void *address)
{
	uint64_t entry = 0;
	int fd = (int)CHECK_CALL(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
	off_t at = (off_t)((uintptr_t)address / KERNEL_PAGE * sizeof(entry));
	CHECK_EQ(pread(fd, &entry, sizeof(entry), at), sizeof(entry));
	close(fd);
	return entry;
}

static inline int kernel_is_present(const void *address)
{
	return (int)(kernel_pagemap(address) >> 63);
}

/* A figure of /proc/self/smaps for the mapping with this address, in bytes; `name` with its colon,
 * as "Rss:". */
static inline long kernel_smaps(const void *address, const char *name)
{
	char line[512];
	uintmax_t at = (uintptr_t)address, start, end;
	int inside = 0;
	long kib = -1;
	FILE *file = fopen("/proc/self/smaps", "re");
	CHECK(file != NULL);
	while (kib == -1 && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%jx-%jx ", &start, &end) == 2)
			inside = start <= at && at < end;
		else if (inside && strncmp(line, name, strlen(name)) == 0)
			kib = strtol(line + strlen(name), NULL, 10);
	}
	fclose(file);
	CHECK(kib >= 0);
	return kib * 1024;
}

/* ---- The ioctls: 0, or errno --------------------------------------------------------- */

static inline int kernel_register(int uffd, const void *address, size_t pages, uint64_t *ret_ioctls)
{
	struct uffdio_register range = {
		.range = {.start = (uintptr_t)address, .len = pages * KERNEL_PAGE},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	if (ioctl(uffd, UFFDIO_REGISTER, &range) == -1)
		return errno;
	if (ret_ioctls)
		*ret_ioctls = range.ioctls;
	return 0;
}

static inline int kernel_unregister(int uffd, const void *address, size_t pages)
{
	struct uffdio_range range = {.start = (uintptr_t)address, .len = pages * KERNEL_PAGE};
	return ioctl(uffd, UFFDIO_UNREGISTER, &range) == -1 ? errno : 0;
}

static inline int kernel_wake(int uffd, const void *address, size_t pages)
{
	struct uffdio_range range = {.start = (uintptr_t)address, .len = pages * KERNEL_PAGE};
	return ioctl(uffd, UFFDIO_WAKE, &range) == -1 ? errno : 0;
}

/* ret_copied gets the kernel's `copy` field: bytes, or a negated errno. It is 12345 before the
 * call. */
#define KERNEL_UNTOUCHED 12345

static inline int kernel_copy(int uffd, const void *to, const void *from, size_t pages,
			      int64_t *ret_copied)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = pages * KERNEL_PAGE,
		.copy = KERNEL_UNTOUCHED,
	};
	int error = ioctl(uffd, UFFDIO_COPY, &copy) == -1 ? errno : 0;
	if (ret_copied)
		*ret_copied = copy.copy;
	return error;
}

static inline int kernel_zeropage(int uffd, const void *to, size_t pages, int64_t *ret_zeroed)
{
	struct uffdio_zeropage zero = {
		.range = {.start = (uintptr_t)to, .len = pages * KERNEL_PAGE},
		.zeropage = KERNEL_UNTOUCHED,
	};
	int error = ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == -1 ? errno : 0;
	if (ret_zeroed)
		*ret_zeroed = zero.zeropage;
	return error;
}

static inline int kernel_poison(int uffd, const void *to, size_t pages, int64_t *ret_updated)
{
	struct kernel_poison poison = {
		.start = (uintptr_t)to,
		.length = pages * KERNEL_PAGE,
		.updated = KERNEL_UNTOUCHED,
	};
	int error = ioctl(uffd, KERNEL_UFFDIO_POISON, &poison) == -1 ? errno : 0;
	if (ret_updated)
		*ret_updated = poison.updated;
	return error;
}

/* ---- Messages ------------------------------------------------------------------------ */

/* poll() for a message; gives revents, 0 after timeout_ms. */
static inline int kernel_poll(int uffd, int timeout_ms)
{
	struct pollfd ready = {.fd = uffd, .events = POLLIN};
	CHECK_CALL(poll(&ready, 1, timeout_ms));
	return ready.revents;
}

/* Read messages until there are `count`, by as many reads as it takes. */
static inline void kernel_read(int uffd, struct uffd_msg *ret_messages, size_t count)
{
	for (size_t got = 0; got < count;) {
		CHECK_EQ(kernel_poll(uffd, KERNEL_WAIT_MS), POLLIN);
		ssize_t bytes =
			read(uffd, ret_messages + got, (count - got) * sizeof(*ret_messages));
		if (bytes == -1 && errno == EAGAIN)
			continue;
		CHECK(bytes > 0 && bytes % (ssize_t)sizeof(*ret_messages) == 0);
		got += (size_t)bytes / sizeof(*ret_messages);
	}
}

/* ---- A thread that touches a page ---------------------------------------------------- */

struct kernel_toucher {
	volatile uint8_t *address;
	int is_write;
	uint8_t value; /* read, or to be written */
	pthread_t thread;
	atomic_int tid; /* 0 until it runs */
	atomic_int done;
};

static inline void *kernel_toucher_run(void *argument)
{
	struct kernel_toucher *toucher = argument;
	atomic_store(&toucher->tid, (int)gettid());
	if (toucher->is_write)
		*toucher->address = toucher->value;
	else
		toucher->value = *toucher->address;
	atomic_store(&toucher->done, 1);
	return NULL;
}

static inline void kernel_toucher_start(struct kernel_toucher *toucher, void *address, int is_write)
{
	memset(toucher, 0, sizeof(*toucher));
	toucher->address = address;
	toucher->is_write = is_write;
	toucher->value = 0xEE;
	CHECK_EQ(pthread_create(&toucher->thread, NULL, kernel_toucher_run, toucher), 0);
}

/* The byte that it read. */
static inline uint8_t kernel_toucher_join(struct kernel_toucher *toucher)
{
	CHECK_EQ(pthread_join(toucher->thread, NULL), 0);
	return toucher->value;
}

/* Wait until it sleeps in its fault: its message is in the queue then. */
static inline void kernel_toucher_wait_asleep(struct kernel_toucher *toucher)
{
	char path[64], line[256], state = '?';
	while (atomic_load(&toucher->tid) == 0)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", atomic_load(&toucher->tid));
	while (state != 'S' && state != 'D') {
		FILE *file = fopen(path, "re");
		CHECK(file && fgets(line, sizeof(line), file));
		fclose(file);
		char *end = strrchr(line, ')');
		CHECK(end && sscanf(end, ") %c", &state) == 1);
		usleep(1000);
	}
}

/* Give a thread every chance to go on: for checking that it does not. */
static inline void kernel_settle(void)
{
	usleep(50 * 1000);
}

/* ---- A thread that serves a range ---------------------------------------------------- */

/* Fills page p of the range with kernel_fill(p + first_page); takes EEXIST as present. */
struct kernel_server {
	int uffd, stop;
	uint8_t *base;
	size_t pages, first_page;
	pthread_t thread;
	atomic_long messages;
	atomic_long foreign; /* faults outside the range: must not happen */
	uint8_t buffer[KERNEL_PAGE];
};

static inline void kernel_server_answer(struct kernel_server *server,
					const struct uffd_msg *message)
{
	CHECK_EQ(message->event, UFFD_EVENT_PAGEFAULT);
	size_t page = (message->arg.pagefault.address - (uintptr_t)server->base) / KERNEL_PAGE;
	atomic_fetch_add(&server->messages, 1);
	if (page >= server->pages) {
		atomic_fetch_add(&server->foreign, 1);
		return;
	}
	uint8_t *address = server->base + page * KERNEL_PAGE;
	kernel_fill(server->buffer, page + server->first_page, 1);
	int error = kernel_copy(server->uffd, address, server->buffer, 1, NULL);
	if (error == EEXIST)
		error = kernel_wake(server->uffd, address, 1);
	CHECK_EQ(error, 0);
}

static inline void *kernel_server_run(void *argument)
{
	struct kernel_server *server = argument;
	struct pollfd ready[2] = {{.fd = server->uffd, .events = POLLIN},
				  {.fd = server->stop, .events = POLLIN}};
	for (;;) {
		struct uffd_msg messages[16];
		CHECK_CALL(poll(ready, 2, -1));
		if (ready[1].revents)
			return NULL;
		ssize_t bytes = read(server->uffd, messages, sizeof(messages));
		if (bytes == -1 && errno == EAGAIN)
			continue;
		CHECK(bytes > 0);
		for (size_t i = 0; i < (size_t)bytes / sizeof(messages[0]); i++)
			kernel_server_answer(server, &messages[i]);
	}
}

static inline void kernel_server_start(struct kernel_server *server, int uffd, uint8_t *base,
				       size_t pages, size_t first_page)
{
	memset(server, 0, sizeof(*server));
	server->uffd = uffd;
	server->base = base;
	server->pages = pages;
	server->first_page = first_page;
	server->stop = (int)CHECK_CALL(eventfd(0, EFD_CLOEXEC));
	CHECK_EQ(pthread_create(&server->thread, NULL, kernel_server_run, server), 0);
}

static inline void kernel_server_stop(struct kernel_server *server)
{
	uint64_t one = 1;
	CHECK_EQ(write(server->stop, &one, sizeof(one)), sizeof(one));
	CHECK_EQ(pthread_join(server->thread, NULL), 0);
	CHECK_EQ(atomic_load(&server->foreign), 0);
	close(server->stop);
}

/* What the range holds when the server filled it all. */
static inline void kernel_check_pages(const uint8_t *got, size_t first_page, size_t pages)
{
	uint8_t expected[KERNEL_PAGE];
	for (size_t p = 0; p < pages; p++) {
		kernel_fill(expected, first_page + p, 1);
		CHECK_MEM(got + p * KERNEL_PAGE, expected, KERNEL_PAGE);
	}
}

#endif
