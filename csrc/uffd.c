#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY /* Linux 5.11 */
#define UFFD_USER_MODE_ONLY 1
#endif

/* UFFDIO_POISON, Linux 6.6: as in its uapi header. */
struct poison_request {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define REQUEST_POISON _IOWR(UFFDIO, 0x08, struct poison_request)

/* UFFDIO_MOVE, Linux 6.8. */
struct move_request {
	uint64_t to;
	uint64_t from;
	uint64_t bytes;
	uint64_t mode;
	int64_t moved;
};
#define REQUEST_MOVE _IOWR(UFFDIO, 0x05, struct move_request)

#define DEVICE    "/dev/userfaultfd"
#define UFFD_NAME "anon_inode:[userfaultfd]"

static int open_by_device(int device, int flags)
{
	int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : fd;
}

/* `device` is not looked at by the system call. */
static int open_by_syscall(int device, int flags)
{
	long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	(void)device;

	return fd < 0 ? -errno : (int)fd;
}

/* Agree on the features. A request for one that the kernel lacks fails whole, so ask first, on
 * another descriptor. */
static int negotiate(int fd, uint64_t wanted, uint64_t *ret_features, uint64_t *ret_ioctls)
{
	struct uffdio_api api = {.api = UFFD_API, .features = wanted};

	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	*ret_features = api.features;
	*ret_ioctls = api.ioctls;
	return 0;
}

/* One way to have one, with the negotiated features: a descriptor or a negative errno. */
static int open_one(int (*open_it)(int, int), int device, int flags, uint64_t wanted,
		    uint64_t *ret_features)
{
	uint64_t offered = 0, ioctls = 0;
	int fd = open_it(device, flags);
	int error;

	if (fd < 0)
		return fd;
	error = negotiate(fd, wanted, &offered, &ioctls);
	if (error == -EINVAL && wanted) {
		/* A failed UFFDIO_API leaves the descriptor as new: ask it for nothing, then start
		 * over. */
		error = negotiate(fd, 0, &offered, &ioctls);
		close(fd);
		if (error < 0)
			return error;
		fd = open_it(device, flags);
		if (fd < 0)
			return fd;
		wanted &= offered;
		error = negotiate(fd, wanted, &offered, &ioctls);
	}
	if (error < 0) {
		close(fd);
		return error;
	}
	*ret_features = wanted;
	return fd;
}

/* By the device where it can be opened, else by the system call. */
static int open_any(struct lr_uffd *uffd, int flags, uint64_t features)
{
	int fd = -ENOENT;

	if (uffd->device >= 0)
		fd = open_one(open_by_device, uffd->device, flags, features, &uffd->features);
	if (fd < 0)
		fd = open_one(open_by_syscall, -1, flags, features, &uffd->features);
	return fd;
}

/* Whether the kernel knows a request: else it does not even look for what is to be done. */
static bool knows(int fd, unsigned long request)
{
	return ioctl(fd, request, NULL) < 0 && errno == EFAULT;
}

/* A refusal, as against a failure that would have come to anyone (no descriptor, no memory). */
static bool is_refusal(int error)
{
	return error == -EPERM || error == -EACCES || error == -ENOSYS || error == -ENOENT
	       || error == -EINVAL;
}

int lr_uffd_open(struct lr_uffd *uffd, uint32_t privilege, uint64_t features,
		 struct lr_problem *ret_problem)
{
	int fd = -EPERM, first_error = 0;

	uffd->fd = -1;
	uffd->device = open(DEVICE, O_RDWR | O_CLOEXEC);
	uffd->privilege = LR_PRIVILEGE_FULL;
	if (privilege != LR_PRIVILEGE_USER_MODE_ONLY) {
		fd = open_any(uffd, 0, features);
		first_error = fd < 0 ? -fd : 0;
	}
	if (fd < 0 && privilege != LR_PRIVILEGE_FULL) {
		uffd->privilege = LR_PRIVILEGE_USER_MODE_ONLY;
		fd = open_any(uffd, UFFD_USER_MODE_ONLY, features);
	}
	if (fd < 0) {
		lr_uffd_close(uffd);
		/* Where all were refused, what is missing for the full kind is what there is to
		 * say. */
		return lr_problem_from_errno(ret_problem,
					     first_error && is_refusal(fd) ? first_error : -fd);
	}
	uffd->fd = fd;
	uffd->tells_quiet = knows(fd, UFFDIO_CONTINUE);
	return LR_OK;
}

int lr_uffd_open_like(struct lr_uffd *uffd, const struct lr_uffd *other,
		      struct lr_problem *ret_problem)
{
	int flags = other->privilege == LR_PRIVILEGE_USER_MODE_ONLY ? UFFD_USER_MODE_ONLY : 0;
	int fd;

	*uffd = *other;
	uffd->fd = -1;
	/* The parent may have been in the midst of it. */
	uffd->defers_wakes = false;
	uffd->wake_low = uffd->wake_high = 0;
	fd = open_any(uffd, flags, other->features);
	if (fd < 0)
		return lr_problem_from_errno(ret_problem, -fd);
	uffd->fd = fd;
	return LR_OK;
}

/* Whether a descriptor is of the file that is called so; -1 where that cannot be told. */
static int is_named(int fd, const char *name)
{
	char link[40], found[40];
	ssize_t got;

	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", fd);
	got = readlink(link, found, sizeof(found));
	if (got < 0)
		return -1;
	return (size_t)got == strlen(name) && memcmp(found, name, (size_t)got) == 0;
}

int lr_uffd_is_one(int fd)
{
	return is_named(fd, UFFD_NAME) > 0 && knows(fd, UFFDIO_WAKE);
}

void lr_uffd_undo_blocking(const struct lr_uffd *uffd)
{
	int flags = fcntl(uffd->fd, F_GETFL);

	if (flags >= 0 && !(flags & O_NONBLOCK))
		fcntl(uffd->fd, F_SETFL, flags | O_NONBLOCK);
}

void lr_uffd_look(struct lr_uffd *uffd)
{
	struct iovec too_small = {.iov_base = uffd, .iov_len = 1};

	uffd->tells_quiet = knows(uffd->fd, UFFDIO_CONTINUE);
	if (knows(uffd->fd, REQUEST_POISON))
		uffd->features |= LR_UFFD_FEATURE_POISON;
	/* Which is said where such reads are known. */
	uffd->reads_no_wait =
		lr_calls_preadv2(uffd->fd, &too_small, 1, -1, RWF_NOWAIT) < 0 && errno == EINVAL;
}

/* Close a descriptor unless the program closed it, and has another file by its number. */
static void close_own(int fd, const char *name)
{
	if (fd >= 0 && is_named(fd, name) != 0)
		close(fd);
}

void lr_uffd_close(struct lr_uffd *uffd)
{
	close_own(uffd->fd, UFFD_NAME);
	close_own(uffd->device, DEVICE);
	uffd->fd = uffd->device = -1;
}

void lr_uffd_probe(struct lr_uffd_probe *ret_probe)
{
	int node = open(DEVICE, O_RDWR | O_CLOEXEC);
	int node_error = errno;
	int device = node < 0 ? -node_error : open_by_device(node, 0);
	int call = open_by_syscall(-1, 0), user_mode = open_by_syscall(-1, UFFD_USER_MODE_ONLY);
	int any = device >= 0 ? device : call >= 0 ? call : user_mode;

	memset(ret_probe, 0, sizeof(*ret_probe));
	ret_probe->device_error = device < 0 ? -device : 0;
	ret_probe->syscall_error = call < 0 ? -call : 0;
	ret_probe->user_mode_error = user_mode < 0 ? -user_mode : 0;
	if (any >= 0)
		negotiate(any, 0, &ret_probe->features, &ret_probe->ioctls);
	if (node >= 0)
		close(node);
	if (device >= 0)
		close(device);
	if (call >= 0)
		close(call);
	if (user_mode >= 0)
		close(user_mode);
}

void lr_uffd_unregister(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {.start = start, .len = bytes};

	ioctl(uffd->fd, UFFDIO_UNREGISTER, &range);
}

int lr_uffd_register(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes,
		     struct lr_problem *ret_problem)
{
	struct uffdio_register request = {
		.range = {.start = start, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	/* Only what is used: a check for all ioctls that the headers know fails as the kernel
	 * learns new ones. */
	uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_WAKE;

	if (ioctl(uffd->fd, UFFDIO_REGISTER, &request) < 0)
		return lr_problem_from_errno(ret_problem, errno);
	if ((request.ioctls & needed) != needed) {
		lr_uffd_unregister(uffd, start, bytes);
		return lr_problem_set(ret_problem, LR_ERR_UNSUPPORTED, 0, LR_NOWHERE, LR_NOWHERE);
	}
	return LR_OK;
}

int lr_uffd_check(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes,
		  bool *ret_has_zeropage, struct lr_problem *ret_problem)
{
	struct uffdio_register request = {
		.range = {.start = start, .len = bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(uffd->fd, UFFDIO_REGISTER, &request) < 0)
		return lr_problem_from_errno(ret_problem, errno);
	*ret_has_zeropage = request.ioctls & 1ull << _UFFDIO_ZEROPAGE;
	return LR_OK;
}

bool lr_uffd_is_gone(const struct lr_uffd *uffd, uint64_t host_page)
{
	/* Refused in any case: nothing is registered for that. At an address that every kernel
	 * takes for one (vm.mmap_min_addr), before it looks whether there is memory. */
	struct uffdio_writeprotect request = {.range = {.start = 1 << 20, .len = host_page}};

	return ioctl(uffd->fd, UFFDIO_WRITEPROTECT, &request) < 0
	       && (errno == ESRCH || errno == ENOSPC);
}

int lr_uffd_has(int fd, uint64_t page, uint64_t host_page)
{
	/* From where nothing can be read: that is looked at last. */
	struct uffdio_copy request = {.dst = page, .src = host_page, .len = host_page};

	if (ioctl(fd, UFFDIO_COPY, &request) == 0 || errno == EFAULT || errno == EEXIST)
		return 1;
	return errno == ENOENT ? 0 : -errno;
}

/* The kernel reports how far it came in a field that holds bytes, or a negative errno where it did
 * nothing. */
static int64_t progress(int result, int64_t done)
{
	if (result == 0)
		return done;
	return errno == EAGAIN && done > 0 ? done : -errno;
}

/* Note who is to be waked. */
static void defer(struct lr_uffd *uffd, uint64_t start, int64_t bytes)
{
	if (bytes <= 0)
		return;
	if (uffd->wake_high == 0 || start < uffd->wake_low)
		uffd->wake_low = start;
	if (start + (uint64_t)bytes > uffd->wake_high)
		uffd->wake_high = start + (uint64_t)bytes;
}

int64_t lr_uffd_copy(struct lr_uffd *uffd, uint64_t to, const void *from, uint64_t bytes)
{
	struct uffdio_copy request = {
		.dst = to,
		.src = (uint64_t)(uintptr_t)from,
		.len = bytes,
		.mode = uffd->defers_wakes ? UFFDIO_COPY_MODE_DONTWAKE : 0,
	};
	/* Before the call below: what order its arguments are taken in, C does not say. */
	int result = ioctl(uffd->fd, UFFDIO_COPY, &request);
	int64_t done = progress(result, request.copy);

	if (uffd->defers_wakes)
		defer(uffd, to, done);
	return done;
}

int64_t lr_uffd_zeropage(struct lr_uffd *uffd, uint64_t to, uint64_t bytes)
{
	struct uffdio_zeropage request = {
		.range = {.start = to, .len = bytes},
		.mode = uffd->defers_wakes ? UFFDIO_ZEROPAGE_MODE_DONTWAKE : 0,
	};
	int result = ioctl(uffd->fd, UFFDIO_ZEROPAGE, &request);
	int64_t done = progress(result, request.zeropage);

	if (uffd->defers_wakes)
		defer(uffd, to, done);
	return done;
}

int64_t lr_uffd_poison(const struct lr_uffd *uffd, uint64_t to, uint64_t bytes)
{
	struct poison_request request = {.range = {.start = to, .len = bytes}};
	int result;

	if (!(uffd->features & LR_UFFD_FEATURE_POISON))
		return -ENOTTY;
	result = ioctl(uffd->fd, REQUEST_POISON, &request);
	return progress(result, request.updated);
}

int64_t lr_uffd_move(const struct lr_uffd *uffd, uint64_t to, const void *from, uint64_t bytes)
{
	struct move_request request = {.to = to, .from = (uint64_t)(uintptr_t)from, .bytes = bytes};
	int result;

	if (!(uffd->features & LR_UFFD_FEATURE_MOVE))
		return -ENOTTY;
	result = ioctl(uffd->fd, REQUEST_MOVE, &request);
	return progress(result, request.moved);
}

bool lr_uffd_wake(const struct lr_uffd *uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {.start = start, .len = bytes};

	return ioctl(uffd->fd, UFFDIO_WAKE, &range) == 0;
}

bool lr_uffd_is_quiet(const struct lr_uffd *uffd, uint64_t page, uint64_t host_page)
{
	/* Refused in any case: it is for shared memory. But if a message waits, that is said first.
	 * A peer's memory may be shared: there is no such mode. (Only for this process's own is it
	 * asked twice, the second time when whoever changes the mappings now has done so.) */
	struct uffdio_continue request = {
		.range = {.start = page, .len = host_page},
		.mode = uffd->is_adopted ? 1ull << 63 : 0,
	};

	return ioctl(uffd->fd, UFFDIO_CONTINUE, &request) == 0 || errno != EAGAIN;
}

static bool is_range(uint64_t start, uint64_t end, uint64_t host_page)
{
	return start < end && start % host_page == 0 && end % host_page == 0;
}

bool lr_uffd_parse(const void *from, uint64_t host_page, struct lr_uffd_message *ret_message)
{
	struct lr_uffd_message message = {0};
	struct uffd_msg raw;

	/* Once: it may lie where others write. */
	memcpy(&raw, from, sizeof(raw));
	switch (raw.event) {
	case UFFD_EVENT_PAGEFAULT:
		message.kind = LR_UFFD_FAULT;
		message.start = raw.arg.pagefault.address;
		message.thread = raw.arg.pagefault.feat.ptid;
		message.is_write = raw.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
		break;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
		message.kind = raw.event == UFFD_EVENT_REMOVE ? LR_UFFD_REMOVE : LR_UFFD_UNMAP;
		message.start = raw.arg.remove.start;
		message.end = raw.arg.remove.end;
		break;
	case UFFD_EVENT_REMAP:
		message.kind = LR_UFFD_REMAP;
		message.start = raw.arg.remap.from;
		message.end = raw.arg.remap.from + raw.arg.remap.len;
		message.to = raw.arg.remap.to;
		if (!is_range(message.to, message.to + raw.arg.remap.len, host_page))
			return false;
		break;
	case UFFD_EVENT_FORK:
		message.kind = LR_UFFD_FORK;
		message.child = (int)raw.arg.fork.ufd;
		break;
	default:
		return false;
	}
	*ret_message = message;
	return message.kind == LR_UFFD_FAULT || message.kind == LR_UFFD_FORK
	       || is_range(message.start, message.end, host_page);
}

void lr_uffd_set_child(void *raw, int child)
{
	((struct uffd_msg *)raw)->arg.fork.ufd = (uint32_t)child;
}

static ssize_t read_once(const struct lr_uffd *uffd, void *ret_raw, size_t bytes)
{
	struct iovec to = {.iov_base = ret_raw, .iov_len = bytes};

	if (uffd->reads_no_wait)
		return lr_calls_preadv2(uffd->fd, &to, 1, -1, RWF_NOWAIT);
	if (uffd->is_adopted) {
		struct pollfd ready = {.fd = uffd->fd, .events = POLLIN};

		lr_uffd_undo_blocking(uffd);
		if (poll(&ready, 1, 0) <= 0 || !(ready.revents & POLLIN)) {
			errno = EAGAIN;
			return -1;
		}
		/* If the peer makes it block now, and takes the message, this does not return: see
		 * lr_pager_unblock. */
	}
	return read(uffd->fd, ret_raw, bytes);
}

int lr_uffd_read_raw(const struct lr_uffd *uffd, void *ret_raw, int room)
{
	size_t wanted = (size_t)(room < LR_UFFD_MESSAGES_MAX ? room : LR_UFFD_MESSAGES_MAX);
	ssize_t got = read_once(uffd, ret_raw, wanted * sizeof(struct uffd_msg));

	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return (int)((size_t)got / sizeof(struct uffd_msg));
}

int lr_uffd_read(const struct lr_uffd *uffd, struct lr_uffd_message *ret_messages, int room)
{
	struct uffd_msg raw[LR_UFFD_MESSAGES_MAX];
	int got = lr_uffd_read_raw(uffd, raw, room), count = 0;

	for (int i = 0; i < got; i++)
		count += lr_uffd_parse(&raw[i], 1, &ret_messages[count]);
	return got < 0 ? got : count;
}
