/* The kernel's promises: what a read brings. */
#include "check.h"
#include "kernel.h"

#define THREADS 6

static void one_read_brings_several_messages(void)
{
	struct kernel_toucher touchers[THREADS];
	struct uffd_msg messages[THREADS + 10];
	int uffd = kernel_open(0), seen[THREADS] = {0};
	uint8_t *memory = kernel_map(THREADS);
	CHECK_EQ(kernel_register(uffd, memory, THREADS, NULL), 0);
	for (int i = 0; i < THREADS; i++)
		kernel_toucher_start(&touchers[i], memory + (size_t)i * KERNEL_PAGE, 0);
	for (int i = 0; i < THREADS; i++)
		kernel_toucher_wait_asleep(&touchers[i]);
	ssize_t bytes = CHECK_CALL(read(uffd, messages, sizeof(messages)));
	CHECK_EQ(bytes, THREADS * sizeof(messages[0]));
	for (int i = 0; i < THREADS; i++) {
		CHECK_EQ(messages[i].event, UFFD_EVENT_PAGEFAULT);
		size_t at = messages[i].arg.pagefault.address - (uintptr_t)memory;
		CHECK(at < THREADS * KERNEL_PAGE);
		CHECK_EQ(seen[at / KERNEL_PAGE]++, 0);
	}
	CHECK_ERRNO(read(uffd, messages, sizeof(messages)), EAGAIN);
	CHECK_EQ(kernel_zeropage(uffd, memory, THREADS, NULL), 0);
	for (int i = 0; i < THREADS; i++)
		CHECK_EQ(kernel_toucher_join(&touchers[i]), 0);
}

/* The rest of the buffer is left alone; what does not fit stays in the queue. */
static void a_buffer_takes_whole_messages_only(void)
{
	struct kernel_toucher touchers[2];
	uint8_t buffer[3 * sizeof(struct uffd_msg)];
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	kernel_toucher_start(&touchers[0], memory, 0);
	kernel_toucher_start(&touchers[1], memory + KERNEL_PAGE, 0);
	CHECK_EQ(kernel_poll(uffd, KERNEL_WAIT_MS), POLLIN);
	CHECK_ERRNO(read(uffd, buffer, sizeof(struct uffd_msg) - 1), EINVAL);
	CHECK_ERRNO(read(uffd, buffer, 0), EINVAL);
	memset(buffer, 0xA5, sizeof(buffer));
	CHECK_EQ(read(uffd, buffer, sizeof(struct uffd_msg) + 31), sizeof(struct uffd_msg));
	for (size_t i = sizeof(struct uffd_msg); i < sizeof(buffer); i++)
		CHECK_EQ(buffer[i], 0xA5);
	struct uffd_msg second;
	kernel_read(uffd, &second, 1);
	CHECK_EQ(kernel_zeropage(uffd, memory, 2, NULL), 0);
	kernel_toucher_join(&touchers[0]);
	kernel_toucher_join(&touchers[1]);
}

/* The refused reads before lost nothing, and a bad buffer loses nothing that is not sent again on
 * WAKE. */
static void a_short_buffer_loses_nothing(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	CHECK_EQ(kernel_poll(uffd, KERNEL_WAIT_MS), POLLIN);
	CHECK_ERRNO(read(uffd, &message, 1), EINVAL);
	CHECK_EQ(kernel_poll(uffd, 0), POLLIN);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(message.arg.pagefault.address, (uintptr_t)memory);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
	kernel_toucher_join(&toucher);
}

static void an_empty_queue_is_eagain(void)
{
	struct uffd_msg message;
	int uffd = kernel_open(0);
	CHECK_ERRNO(read(uffd, &message, sizeof(message)), EAGAIN);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
}

static void the_address_is_of_the_page_unless_exact(void)
{
	uint64_t features[2] = {0, UFFD_FEATURE_EXACT_ADDRESS};
	for (int exact = 0; exact < 2; exact++) {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		int uffd = kernel_open(features[exact]);
		uint8_t *memory = kernel_map(2), *touched = memory + KERNEL_PAGE + 0x123;
		CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
		kernel_toucher_start(&toucher, touched, 0);
		kernel_read(uffd, &message, 1);
		CHECK_EQ(message.arg.pagefault.address,
			 (uintptr_t)(exact ? touched : memory + KERNEL_PAGE));
		CHECK_EQ(kernel_zeropage(uffd, memory, 2, NULL), 0);
		kernel_toucher_join(&toucher);
	}
}

static void the_thread_is_told_if_asked(void)
{
	uint64_t features[2] = {0, UFFD_FEATURE_THREAD_ID};
	for (int asked = 0; asked < 2; asked++) {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		int uffd = kernel_open(features[asked]);
		uint8_t *memory = kernel_map(1);
		CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
		kernel_toucher_start(&toucher, memory, 0);
		kernel_read(uffd, &message, 1);
		CHECK_EQ(message.arg.pagefault.feat.ptid, asked ? atomic_load(&toucher.tid) : 0);
		CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
		kernel_toucher_join(&toucher);
	}
}

static void writes_are_told_from_reads(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(2);
	CHECK_EQ(kernel_register(uffd, memory, 2, NULL), 0);
	for (int is_write = 0; is_write < 2; is_write++) {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		uint8_t *page = memory + (size_t)is_write * KERNEL_PAGE;
		kernel_toucher_start(&toucher, page, is_write);
		kernel_read(uffd, &message, 1);
		CHECK_EQ(message.arg.pagefault.flags, is_write ? UFFD_PAGEFAULT_FLAG_WRITE : 0);
		/* A write into a page answered by ZEROPAGE goes through: one message, no second
		 * fault. */
		CHECK_EQ(kernel_zeropage(uffd, page, 1, NULL), 0);
		kernel_toucher_join(&toucher);
		CHECK_EQ(*page, is_write ? 0xEE : 0);
		CHECK_EQ(kernel_poll(uffd, 0), 0);
	}
}

static void two_threads_on_a_page_are_two_messages(void)
{
	struct kernel_toucher touchers[2];
	struct uffd_msg messages[2];
	uint8_t data[KERNEL_PAGE];
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&touchers[0], memory, 0);
	kernel_toucher_start(&touchers[1], memory + 1, 0);
	kernel_read(uffd, messages, 2);
	CHECK_EQ(messages[0].arg.pagefault.address, messages[1].arg.pagefault.address);
	kernel_fill(data, 0, 1);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), EEXIST);
	/* The one COPY woke both. */
	CHECK_EQ(kernel_toucher_join(&touchers[0]), data[0]);
	CHECK_EQ(kernel_toucher_join(&touchers[1]), data[1]);
}

/* A fault that was read is not sent again by itself; WAKE makes its thread try again, and so sends
 * it again. */
static void wake_sends_a_fault_again(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(kernel_poll(uffd, 50), 0);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(kernel_wake(uffd, memory, 1), 0);
		kernel_read(uffd, &message, 1);
		CHECK_EQ(message.arg.pagefault.address, (uintptr_t)memory);
	}
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
	kernel_toucher_join(&toucher);
}

/* A fault that is answered before its message was read leaves no message. */
static void an_answered_fault_leaves_the_queue(void)
{
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	CHECK_EQ(kernel_poll(uffd, KERNEL_WAIT_MS), POLLIN);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
	kernel_toucher_join(&toucher);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_ERRNO(read(uffd, &message, sizeof(message)), EAGAIN);
}

static void ignore(int signal_number)
{
	(void)signal_number;
}

/* A signal interrupts a waiting load or store; when its handler is done the load faults again: a
 * second message. */
static void a_signal_sends_a_fault_again(void)
{
	struct sigaction action = {.sa_handler = ignore};
	struct kernel_toucher toucher;
	struct uffd_msg message;
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(1);
	CHECK_CALL(sigaction(SIGUSR1, &action, NULL));
	CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
	kernel_toucher_start(&toucher, memory, 0);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(pthread_kill(toucher.thread, SIGUSR1), 0);
	kernel_read(uffd, &message, 1);
	CHECK_EQ(message.arg.pagefault.address, (uintptr_t)memory);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, NULL), 0);
	kernel_toucher_join(&toucher);
}

static const struct check_case cases[] = {
	CHECK_CASE(one_read_brings_several_messages),
	CHECK_CASE(a_buffer_takes_whole_messages_only),
	CHECK_CASE(a_short_buffer_loses_nothing),
	CHECK_CASE(an_empty_queue_is_eagain),
	CHECK_CASE(the_address_is_of_the_page_unless_exact),
	CHECK_CASE(the_thread_is_told_if_asked),
	CHECK_CASE(writes_are_told_from_reads),
	CHECK_CASE(two_threads_on_a_page_are_two_messages),
	CHECK_CASE(wake_sends_a_fault_again),
	CHECK_CASE(an_answered_fault_leaves_the_queue),
	CHECK_CASE(a_signal_sends_a_fault_again),
};
CHECK_MAIN(cases)
