/* The kernel's promises: having a userfaultfd, and the handshake. */
#include "check.h"
#include "kernel.h"

static void the_device_gives_one(void)
{
	int uffd = kernel_try_device(O_CLOEXEC | O_NONBLOCK);
	if (uffd == -1)
		SKIP("/dev/userfaultfd: %s", strerror(errno));
	struct uffdio_api api = {.api = UFFD_API};
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	CHECK_EQ(fcntl(uffd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	CHECK_EQ(fcntl(uffd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

static void the_system_call_gives_one(void)
{
	int uffd = kernel_try_syscall(O_CLOEXEC | O_NONBLOCK);
	if (uffd == -1)
		SKIP("userfaultfd(2): %s", strerror(errno));
	struct uffdio_api api = {.api = UFFD_API};
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	CHECK_EQ(fcntl(uffd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	CHECK_EQ(fcntl(uffd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

static void unknown_flags_are_refused(void)
{
	close(kernel_open_raw(0));
	CHECK_ERRNO(kernel_try_syscall(0x40 | UFFD_USER_MODE_ONLY), EINVAL);
}

static void the_handshake_says_what_there_is(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = kernel_open_raw(O_CLOEXEC);
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	uint64_t needed = (uint64_t)1 << _UFFDIO_API | (uint64_t)1 << _UFFDIO_REGISTER
			  | (uint64_t)1 << _UFFDIO_UNREGISTER;
	CHECK_EQ(api.ioctls & needed, needed);
	/* All that the kernel has, not only what was asked for: this is how to ask. */
	CHECK(api.features & UFFD_FEATURE_THREAD_ID);
}

static void a_wrong_version_is_refused(void)
{
	struct uffdio_api api = {.api = UFFD_API + 1, .features = 0};
	int uffd = kernel_open_raw(O_CLOEXEC);
	CHECK_ERRNO(ioctl(uffd, UFFDIO_API, &api), EINVAL);
	/* The refusal leaves it as it was: asking properly still works. */
	api = (struct uffdio_api){.api = UFFD_API};
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
}

static void an_unknown_feature_is_refused_and_zeroed(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = (uint64_t)1 << 63, .ioctls = 7};
	int uffd = kernel_open_raw(O_CLOEXEC);
	CHECK_ERRNO(ioctl(uffd, UFFDIO_API, &api), EINVAL);
	CHECK_EQ(api.api, 0);
	CHECK_EQ(api.features, 0);
	CHECK_EQ(api.ioctls, 0);
	api = (struct uffdio_api){.api = UFFD_API};
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
}

/* So what is available must be asked on one descriptor and used on another. */
static void a_second_handshake_is_refused(void)
{
	struct uffdio_api api = {.api = UFFD_API}, again = api;
	int uffd = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	CHECK_ERRNO(ioctl(uffd, UFFDIO_API, &again), EINVAL);
	/* It goes on with what the first one said. */
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
}

static void nothing_works_before_the_handshake(void)
{
	struct uffd_msg message;
	int uffd = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);
	uint8_t *memory = kernel_map(1);
	CHECK_ERRNO(read(uffd, &message, sizeof(message)), EINVAL);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), EINVAL);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), EINVAL);
	CHECK_EQ(kernel_poll(uffd, 0), POLLERR);
}

static void polling_a_blocking_one_is_an_error(void)
{
	int uffd = kernel_open_flags(O_CLOEXEC, 0);
	CHECK_EQ(kernel_poll(uffd, 0), POLLERR);
	/* Even with a message to be read. */
	struct kernel_toucher toucher;
	struct uffd_msg message;
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	CHECK_EQ(read(uffd, &message, sizeof(message)), sizeof(message));
	CHECK_EQ(kernel_poll(uffd, 0), POLLERR);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
	CHECK_EQ(kernel_toucher_join(&toucher), 0);
	/* Making it non-blocking mends it. */
	CHECK_CALL(fcntl(uffd, F_SETFL, O_NONBLOCK));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
}

static void no_descriptor_left_is_emfile(void)
{
	close(kernel_open_raw(O_CLOEXEC)); /* or skip */
	if (access("/dev/userfaultfd", R_OK | W_OK) == -1)
		SKIP("/dev/userfaultfd: %s", strerror(errno));
	int lowest = (int)CHECK_CALL(dup(STDERR_FILENO));
	close(lowest);
	struct rlimit full = {(rlim_t)lowest, (rlim_t)lowest + 1};
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &full));
	CHECK_ERRNO(kernel_try_syscall(O_CLOEXEC), EMFILE);
	CHECK_ERRNO(kernel_try_device(O_CLOEXEC), EMFILE);
	/* Room for the device only: its ioctl says so as well. */
	struct rlimit one = {(rlim_t)lowest + 1, (rlim_t)lowest + 1};
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &one));
	CHECK_ERRNO(kernel_try_device(O_CLOEXEC), EMFILE);
}

static int sysctl_allows_all(void)
{
	char value = '0';
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
	if (fd == -1 || read(fd, &value, 1) != 1)
		SKIP("vm.unprivileged_userfaultfd: %s", strerror(errno));
	close(fd);
	return value != '0';
}

static void become_nobody(void)
{
	if (geteuid() != 0)
		SKIP("needs root, to stop being it");
	if (sysctl_allows_all())
		SKIP("vm.unprivileged_userfaultfd is 1: everyone may");
	CHECK_CALL(setresgid(65534, 65534, 65534));
	CHECK_CALL(setresuid(65534, 65534, 65534));
}

static void without_rights_only_user_mode_is_left(void)
{
	become_nobody();
	CHECK_ERRNO(kernel_try_syscall(O_CLOEXEC), EPERM);
	int uffd = kernel_try_syscall(O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd == -1)
		SKIP("UFFD_USER_MODE_ONLY: %s", strerror(errno));
	struct uffdio_api api = {.api = UFFD_API};
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
}

/* An open device keeps the right through setuid: it is what a fork's child uses later. */
static void an_open_device_works_without_rights(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device == -1)
		SKIP("/dev/userfaultfd: %s", strerror(errno));
	become_nobody();
	CHECK_ERRNO(kernel_try_syscall(O_CLOEXEC), EPERM);
	CHECK_CALL(ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC));
}

static const struct check_case cases[] = {
	CHECK_CASE(the_device_gives_one),
	CHECK_CASE(the_system_call_gives_one),
	CHECK_CASE(unknown_flags_are_refused),
	CHECK_CASE(the_handshake_says_what_there_is),
	CHECK_CASE(a_wrong_version_is_refused),
	CHECK_CASE(an_unknown_feature_is_refused_and_zeroed),
	CHECK_CASE(a_second_handshake_is_refused),
	CHECK_CASE(nothing_works_before_the_handshake),
	CHECK_CASE(polling_a_blocking_one_is_an_error),
	CHECK_CASE(no_descriptor_left_is_emfile),
	CHECK_CASE(without_rights_only_user_mode_is_left),
	CHECK_CASE(an_open_device_works_without_rights),
};
CHECK_MAIN(cases)
