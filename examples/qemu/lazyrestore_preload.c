/*
 * Lets QEMU start with guest memory that `lazyrestore serve` loads when it is touched.
 *
 *     gcc -std=c11 -O2 -shared -fPIC lazyrestore_preload.c -o lazyrestore_preload.so
 *     LD_PRELOAD=./lazyrestore_preload.so LAZYRESTORE_SOCKET=vm.sock qemu-system-x86_64 ...
 *             -object memory-backend-memfd,id=ram,size=256M,share=on -machine memory-backend=ram
 *             -global migration.x-ignore-shared=on -incoming "exec:cat dev.state"
 *
 * QEMU takes no userfaultfd from elsewhere. This library stands in for mmap(): when QEMU maps the
 * memfd of its memory backend, the mapping is registered with a new userfaultfd, which goes to the
 * service with the message that Firecracker sends, before QEMU has the address. Whatever cannot be
 * done makes that mmap() fail, and QEMU end with a message: a guest never runs on empty memory.
 *
 * Nothing is needed but libc and the kernel's headers. docs/qemu.md says the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#define HUGETLBFS_MAGIC 0x958458f6
/* How Linux shows a memfd of QEMU's memory-backend-memfd under /proc/self/fd. */
#define MEMFD_LINK "/memfd:memory-backend-memfd"

/* The service takes one message a connection, so there can be one mapping. Both descriptors stay
 * open for as long as QEMU lives: the kernel would give zeros for what is missing if the last copy
 * of the userfaultfd went, and the service takes the socket's end for QEMU's. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int is_handed_over;

static int fail(const char *what, int error)
{
	fprintf(stderr, "lazyrestore_preload: %s: %s\n", what, strerror(error));
	errno = error;
	return -1;
}

/* One that serves the faults of system calls too, QEMU's and KVM's: never user-mode-only. */
static int open_userfaultfd(void)
{
	int fd = -1, device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return fail("no userfaultfd (`lazyrestore doctor` says what to change)", errno);
	return fd;
}

static int register_range(int uffd, void *address, size_t bytes, int is_hugetlb)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_EVENT_REMOVE
					     | (is_hugetlb ? UFFD_FEATURE_MISSING_HUGETLBFS
							   : UFFD_FEATURE_MISSING_SHMEM)};
	struct uffdio_register range = {.range = {(uintptr_t)address, bytes},
					.mode = UFFDIO_REGISTER_MODE_MISSING};

	if (ioctl(uffd, UFFDIO_API, &api) < 0)
		return fail("the kernel's userfaultfd does not know shared memory", errno);
	if (ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		return fail("registering QEMU's memory with a userfaultfd", errno);
	return 0;
}

static int connect_to_service(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return fail(path, ENAMETOOLONG);
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	fail(path, errno);
	if (fd >= 0)
		close(fd);
	return -1;
}

/* The message that Firecracker sends on loading a snapshot. */
static int send_message(int connection, int uffd, void *address, size_t bytes, size_t page_size)
{
	char text[256];
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {.iov_base = text};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	ssize_t sent;

	part.iov_len = (size_t)snprintf(text, sizeof(text),
					"[{\"base_host_virt_addr\":%" PRIuPTR
					",\"size\":%zu,\"offset\":0,\"page_size\":%zu}]",
					(uintptr_t)address, bytes, page_size);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &uffd, sizeof(int));
	do
		sent = sendmsg(connection, &message, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	/* So short a message goes whole into a socket's empty buffer, or not at all. */
	if (sent != (ssize_t)part.iov_len)
		return fail("handing the userfaultfd to the service", sent < 0 ? errno : EIO);
	return 0;
}

static int hand_over(const char *path, void *address, size_t bytes, int memfd)
{
	struct statfs filesystem;
	struct stat file;
	int uffd = -1, connection = -1, is_hugetlb;

	if (fstat(memfd, &file) < 0 || fstatfs(memfd, &filesystem) < 0)
		return fail("QEMU's memfd", errno);
	if (file.st_blocks != 0)
		return fail("QEMU's memory has content already", EBUSY);
	is_hugetlb = (unsigned long)filesystem.f_type == HUGETLBFS_MAGIC;
	uffd = open_userfaultfd();
	if (uffd < 0)
		return -1;
	if (register_range(uffd, address, bytes, is_hugetlb) == 0)
		connection = connect_to_service(path);
	if (connection >= 0
	    && send_message(connection, uffd, address, bytes, (size_t)filesystem.f_bsize) == 0)
		return 0;
	if (connection >= 0)
		close(connection);
	/* QEMU does not get this mapping: what would read as zeros now is not touched. */
	close(uffd);
	return -1;
}

static int is_memory_backend(int fd)
{
	char name[64], link[sizeof(MEMFD_LINK) + 16];
	ssize_t length;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	length = readlink(name, link, sizeof(link) - 1);
	return length >= (ssize_t)strlen(MEMFD_LINK)
	       && memcmp(link, MEMFD_LINK, strlen(MEMFD_LINK)) == 0;
}

/* 0: QEMU may have the mapping. */
static int take(void *address, size_t bytes, int fd)
{
	const char *path = getenv("LAZYRESTORE_SOCKET");
	int result;

	if (!path || !*path)
		return 0;
	pthread_mutex_lock(&lock);
	if (is_handed_over)
		result = fail("one memory backend can be restored, and this is the second", EBUSY);
	else
		result = hand_over(path, address, bytes, fd);
	if (result == 0)
		is_handed_over = 1;
	pthread_mutex_unlock(&lock);
	return result;
}

void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off64_t offset)
{
	/* Not by dlsym(), which may map memory itself. */
	void *mapped = (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
	int error = errno;

	if (mapped == MAP_FAILED || fd < 0 || !(flags & MAP_SHARED) || !(protection & PROT_WRITE)
	    || !is_memory_backend(fd)) {
		errno = error;
		return mapped;
	}
	if (take(mapped, bytes, fd) == 0) {
		errno = error;
		return mapped;
	}
	error = errno;
	munmap(mapped, bytes);
	errno = error;
	return MAP_FAILED;
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	return mmap64(address, bytes, protection, flags, fd, offset);
}
