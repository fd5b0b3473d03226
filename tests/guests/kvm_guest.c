/*
 * A guest of KVM's without any VMM: processors that add up their memory, and halt.
 *
 *     kvm_guest probe               whether KVM can run this here: exit code 77, and why not
 *     kvm_guest write FILE MIB      the guest's memory before it runs; prints the sum
 *     kvm_guest map IMAGE           run it on that memory, restored lazily in this process
 *     kvm_guest serve SOCKET MIB    run it on memory that `lazyrestore serve` loads; says "running"
 *                                   first, and afterwards waits for the end of standard input
 *
 * All is in the memory that is restored: the page tables, the code, and what is added up. One
 * processor goes upwards, the other downwards; each also marks the pages that it has seen, and the
 * marks are compared afterwards. Only some words of each page are read: where KVM has no help of
 * the processor it interprets the code, a million instructions a second.
 *
 * It prints "sum HEX" for each processor, and "marks right" or "marks WRONG".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "lazyrestore.h"

#define SKIP       77
#define MIB        (UINT64_C(1) << 20)
#define PAGE       4096
#define PROCESSORS 2
/* Where things lie in the guest, which sees its memory at the addresses that it has. */
#define TABLES 0x1000
#define CODE   0x8000
#define DATA   MIB
#define STEP   512 /* from one word that is added up to the next */
#define MARK   8   /* where in its page a processor's mark is; the second one's 8 bytes further */

/* rax sum, rcx words, rdx step, rsi the word, rdi what is or-ed to it to find the mark, rbx the
 * mark. */
static const uint8_t code[] = {
	0x48, 0x03, 0x06,       /* again: add rax, [rsi] */
	0x48, 0x89, 0xf5,       /* mov rbp, rsi */
	0x48, 0x09, 0xfd,       /* or rbp, rdi */
	0x48, 0x89, 0x5d, 0x00, /* mov [rbp], rbx */
	0x48, 0x01, 0xd6,       /* add rsi, rdx */
	0x48, 0xff, 0xc9,       /* dec rcx */
	0x75, 0xeb,             /* jnz again */
	0xf4,                   /* hlt */
};

struct guest {
	int kvm, vm;
	uint8_t *memory;
	uint64_t bytes;
};

struct processor {
	pthread_t thread;
	struct guest *guest;
	uint32_t number;
	const char *failed_at; /* NULL: it ran to its end */
	int error;
	uint64_t sum;
};

static uint64_t word_at(uint64_t offset)
{
	uint64_t x = offset + UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 27;
}

static uint64_t words_of(uint64_t bytes)
{
	return (bytes - DATA) / STEP;
}

/* Page tables that show the first GiB as it is, the code, and the words. */
static uint64_t write_memory(uint8_t *memory, uint64_t bytes)
{
	uint64_t *tables = (uint64_t *)(memory + TABLES), sum = 0;

	tables[0] = (TABLES + PAGE) | 3;
	tables[512] = (TABLES + 2 * PAGE) | 3;
	for (uint64_t i = 0; i < 512; i++)
		tables[1024 + i] = i << 21 | 0x83;
	memcpy(memory + CODE, code, sizeof(code));
	for (uint64_t at = DATA; at < bytes; at += STEP) {
		uint64_t word = word_at(at);

		memcpy(memory + at, &word, sizeof(word));
		sum += word;
	}
	return sum;
}

/* The words must be as they were; of each page both marks must be there, and else nothing. */
static int marks_are_right(const uint8_t *memory, uint64_t bytes)
{
	for (uint64_t at = DATA; at < bytes; at += 8) {
		uint64_t word, expected = at % STEP ? 0 : word_at(at);

		memcpy(&word, memory + at, sizeof(word));
		for (uint64_t n = 0; n < PROCESSORS; n++)
			if (at % STEP == (uint64_t)MARK << n)
				expected = n + 1;
		if (word != expected) {
			fprintf(stderr, "at %#" PRIx64 ": %#" PRIx64 ", not %#" PRIx64 "\n", at,
				word, expected);
			return 0;
		}
	}
	return 1;
}

static int set_up_processor(int cpu, const struct processor *processor)
{
	uint64_t last = DATA + (words_of(processor->guest->bytes) - 1) * STEP;
	int is_down = processor->number % 2;
	struct kvm_regs regs = {.rip = CODE,
				.rflags = 2,
				.rbx = processor->number + 1,
				.rcx = words_of(processor->guest->bytes),
				.rdx = is_down ? -(uint64_t)STEP : STEP,
				.rdi = MARK << processor->number,
				.rsi = is_down ? last : DATA};
	struct kvm_segment segment = {.limit = UINT32_MAX,
				      .selector = 8,
				      .present = 1,
				      .type = 11,
				      .s = 1,
				      .l = 1,
				      .g = 1};
	struct kvm_sregs sregs;

	if (ioctl(cpu, KVM_GET_SREGS, &sregs) < 0)
		return -1;
	/* Straight into long mode: paging with what write_memory() made. */
	sregs.cr0 |= 0x80000011;
	sregs.cr3 = TABLES;
	sregs.cr4 |= 0x20;
	sregs.efer |= 0x500;
	sregs.cs = segment;
	segment.selector = 16;
	segment.type = 3;
	segment.l = 0;
	segment.db = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
	return ioctl(cpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(cpu, KVM_SET_REGS, &regs) < 0 ? -1
											    : 0;
}

/* NULL, or the step that failed; errno says how. */
static const char *run_processor(struct processor *processor, int cpu, struct kvm_run *run)
{
	struct kvm_regs regs;

	if (set_up_processor(cpu, processor) < 0)
		return "setting a processor's registers";
	/* A signal, or an instruction that KVM wants to look at again. */
	while (ioctl(cpu, KVM_RUN, 0) < 0)
		if (errno != EINTR && errno != EAGAIN)
			return "KVM_RUN";
	if (run->exit_reason != KVM_EXIT_HLT) {
		errno = 0;
		fprintf(stderr, "KVM_RUN ended with reason %u, suberror %u\n", run->exit_reason,
			run->exit_reason == KVM_EXIT_INTERNAL_ERROR ? run->internal.suberror : 0);
		return "running the guest's code";
	}
	if (ioctl(cpu, KVM_GET_REGS, &regs) < 0)
		return "KVM_GET_REGS";
	processor->sum = regs.rax;
	return NULL;
}

static void *processor_main(void *argument)
{
	struct processor *processor = argument;
	struct guest *guest = processor->guest;
	int bytes = ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int cpu = ioctl(guest->vm, KVM_CREATE_VCPU, processor->number);
	struct kvm_run *run = MAP_FAILED;

	processor->failed_at = "KVM_CREATE_VCPU";
	if (cpu >= 0 && bytes > 0)
		run = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run != MAP_FAILED)
		processor->failed_at = run_processor(processor, cpu, run);
	processor->error = errno;
	if (run != MAP_FAILED)
		munmap(run, (size_t)bytes);
	if (cpu >= 0)
		close(cpu);
	return NULL;
}

/* NULL, or what failed: then errno says how. */
static const char *run_guest(struct guest *guest, uint64_t sums[PROCESSORS])
{
	struct kvm_userspace_memory_region slot = {.memory_size = guest->bytes,
						   .userspace_addr = (uintptr_t)guest->memory};
	struct processor processors[PROCESSORS] = {0};
	const char *failed_at = NULL;

	guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (guest->kvm < 0)
		return "opening /dev/kvm";
	guest->vm = ioctl(guest->kvm, KVM_CREATE_VM, 0);
	if (guest->vm < 0)
		return "KVM_CREATE_VM";
	if (ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return "KVM_SET_USER_MEMORY_REGION";
	for (uint32_t n = 0; n < PROCESSORS; n++) {
		processors[n].guest = guest;
		processors[n].number = n;
		if (pthread_create(&processors[n].thread, NULL, processor_main, &processors[n]))
			abort();
	}
	for (uint32_t n = 0; n < PROCESSORS; n++) {
		pthread_join(processors[n].thread, NULL);
		sums[n] = processors[n].sum;
		if (processors[n].failed_at && !failed_at) {
			failed_at = processors[n].failed_at;
			errno = processors[n].error;
		}
	}
	return failed_at;
}

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return 1;
}

static int report(struct guest *guest)
{
	uint64_t sums[PROCESSORS];
	const char *failed_at = run_guest(guest, sums);

	if (failed_at)
		return fail(failed_at);
	for (int n = 0; n < PROCESSORS; n++)
		printf("sum %016" PRIx64 "\n", sums[n]);
	printf("marks %s\n", marks_are_right(guest->memory, guest->bytes) ? "right" : "WRONG");
	fflush(stdout);
	return 0;
}

static void *map_memory(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* The same in ordinary memory: what fails there is KVM's. */
static int probe(void)
{
	struct guest guest = {.bytes = 2 * MIB};
	uint64_t sums[PROCESSORS], expected;
	const char *failed_at;

	guest.memory = map_memory(guest.bytes);
	if (!guest.memory)
		return fail("no memory");
	expected = write_memory(guest.memory, guest.bytes);
	failed_at = run_guest(&guest, sums);
	if (!failed_at && sums[0] == expected && sums[1] == expected)
		return 0;
	if (failed_at)
		fprintf(stderr, "%s: %s\n", failed_at, strerror(errno));
	else
		fprintf(stderr, "the guest ran, and added up wrongly\n");
	return SKIP;
}

static int write_file(const char *path, uint64_t bytes)
{
	uint8_t *memory = map_memory(bytes);
	FILE *file = fopen(path, "wb");
	uint64_t sum;

	if (!memory || !file)
		return fail(path);
	sum = write_memory(memory, bytes);
	if (fwrite(memory, 1, bytes, file) != bytes || fclose(file) != 0)
		return fail(path);
	printf("sum %016" PRIx64 "\n", sum);
	return 0;
}

static int run_mapped(const char *path)
{
	struct lr_problem problem = {0};
	struct lr_region_info region;
	struct lr_session_stats stats;
	lr_session *session = NULL;
	struct guest guest = {0};
	lr_image *image = NULL;
	void *memory = NULL;
	int code = 1;

	if (lr_image_open(path, &image, &problem) < 0
	    || lr_session_open(image, NULL, &session, &problem) < 0
	    || lr_image_get_region(image, 0, &region) < 0
	    || lr_session_map(session, 0, &memory, &problem) < 0) {
		fprintf(stderr, "%s: %s\n", path, lr_strerror(problem.code));
		goto out;
	}
	guest.memory = memory;
	guest.bytes = region.length;
	code = report(&guest);
	lr_session_get_stats(session, &stats);
	printf("faults %" PRIu64 "\nerrors %" PRIu64 "\n", stats.faults, stats.errors);
out:
	lr_session_close(session);
	lr_image_close(image);
	return code;
}

static int register_memory(void *memory, uint64_t bytes)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
	struct uffdio_register range = {.range = {(uintptr_t)memory, bytes},
					.mode = UFFDIO_REGISTER_MODE_MISSING};

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0
	    || ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		return -1;
	return uffd;
}

/* As Firecracker does it. */
static int hand_over(const char *path, int uffd, const void *memory, uint64_t bytes)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	char text[256];
	struct iovec part = {.iov_base = text};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	part.iov_len = (size_t)snprintf(text, sizeof(text),
					"[{\"base_host_virt_addr\":%" PRIuPTR ",\"size\":%" PRIu64
					",\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
					(uintptr_t)memory, bytes);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &uffd, sizeof(int));
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0
	    || sendmsg(fd, &message, MSG_NOSIGNAL) != (ssize_t)part.iov_len)
		return -1;
	return fd;
}

static int run_served(const char *path, uint64_t bytes)
{
	struct guest guest = {.memory = map_memory(bytes), .bytes = bytes};
	int uffd = guest.memory ? register_memory(guest.memory, bytes) : -1;
	int code;

	if (uffd < 0)
		return fail("userfaultfd");
	if (hand_over(path, uffd, guest.memory, bytes) < 0)
		return fail(path);
	printf("running\n");
	fflush(stdout);
	code = report(&guest);
	while (getchar() != EOF)
		;
	return code;
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	uint64_t bytes = argc > 3 ? strtoull(argv[3], NULL, 10) * MIB : 0;

	if (strcmp(command, "probe") == 0)
		return probe();
	if (strcmp(command, "map") == 0 && argc == 3)
		return run_mapped(argv[2]);
	if (strcmp(command, "write") == 0 && bytes > MIB)
		return write_file(argv[2], bytes);
	if (strcmp(command, "serve") == 0 && bytes > MIB)
		return run_served(argv[2], bytes);
	fprintf(stderr, "usage: %s probe | write FILE MIB | map IMAGE | serve SOCKET MIB\n",
		argv[0]);
	return 2;
}
