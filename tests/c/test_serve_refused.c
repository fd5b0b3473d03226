/* What cannot be served is refused, and says which it is: nothing that a peer hands over is
 * trusted. */
#include "check.h"

#include <stddef.h>
#include <sys/socket.h>

#include "kept.h"
#include "serve_setting.h"

#define PAGES 64

static struct peer peer;

static void set_up(void)
{
	make_image(16384, PAGES, "dz");
	peer_start(&peer, PAGES, PEER_FEATURES);
}

static void tear_down(void)
{
	peer_end(&peer);
}

static int try_range(uint64_t address, uint64_t bytes, uint64_t offset, uint32_t region)
{
	struct lr_peer_range range = {
		.address = address, .bytes = bytes, .offset = offset, .region = region};
	lr_session *session = NULL;
	int code = try_to_serve(&peer, &range, 1, -1, &session);

	CHECK_EQ(code == LR_OK, session != NULL);
	lr_session_close(session);
	return code;
}

static void ranges_that_cannot_be(void)
{
	uint64_t start, all = PAGES * PAGE;

	set_up();
	start = (uintptr_t)peer.memory;
	CHECK_EQ(try_range(start, all, 0, 1), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, all, 0, UINT32_MAX), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, 0, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(0, all, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start + 1, all - PAGE, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, all - 1, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, PAGE, 1, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, all + PAGE, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, all, PAGE, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, PAGE, all, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, PAGE, UINT64_MAX - PAGE + 1, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, UINT64_MAX - PAGE + 1, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(UINT64_MAX - PAGE + 1, all, 0, 0), LR_ERR_ARGUMENT);
	/* Nothing is mapped, or can be, or it is this process's and not the peer's. */
	CHECK_EQ(try_range(PAGE, PAGE, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(1ull << 60, PAGE, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range((uintptr_t)kernel_map(1), PAGE, 0, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_range(start, all, 0, 0), LR_OK);
	tear_down();
}

static int try_two(uint64_t first, uint64_t first_offset, uint64_t second, uint64_t second_offset)
{
	struct lr_peer_range ranges[2] = {
		{.address = first, .bytes = 8 * PAGE, .offset = first_offset},
		{.address = second, .bytes = 8 * PAGE, .offset = second_offset},
	};
	lr_session *session = NULL;
	int code = try_to_serve(&peer, ranges, 2, -1, &session);

	lr_session_close(session);
	return code;
}

static void ranges_that_overlap(void)
{
	uint64_t start;

	set_up();
	start = (uintptr_t)peer.memory;
	/* In the peer; in the image; neither, in either order. */
	CHECK_EQ(try_two(start, 0, start + 7 * PAGE, 8 * PAGE), LR_ERR_ARGUMENT);
	CHECK_EQ(try_two(start + 7 * PAGE, 0, start, 8 * PAGE), LR_ERR_ARGUMENT);
	CHECK_EQ(try_two(start, 0, start + 8 * PAGE, 7 * PAGE), LR_ERR_ARGUMENT);
	CHECK_EQ(try_two(start, 7 * PAGE, start + 8 * PAGE, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_two(start, 0, start, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(try_two(start, 0, start + 8 * PAGE, 8 * PAGE), LR_OK);
	CHECK_EQ(try_two(start + 8 * PAGE, 0, start, 8 * PAGE), LR_OK);
	tear_down();
}

static int try_options(struct lr_serve_options options)
{
	lr_session *session = NULL;
	int code;

	if (!options.ranges && options.range_count == 0)
		options.range_count = 1;
	code = lr_session_serve(opened, &options, &session, NULL);
	lr_session_close(session);
	return code;
}

static void options_that_cannot_be(void)
{
	struct lr_peer_range range;
	struct lr_serve_options good;

	set_up();
	range = whole_range(&peer);
	good = (struct lr_serve_options){
		.uffd = peer.uffd,
		.state = -1,
		.event_fd = -1,
		.ranges = &range,
		.range_count = 1,
	};
	CHECK_EQ(try_options(good), LR_OK);
#define TRY(field, value)                                                                          \
	({                                                                                         \
		struct lr_serve_options changed = good;                                            \
		changed.field = value;                                                             \
		try_options(changed);                                                              \
	})
	CHECK_EQ(TRY(ranges, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(range_count, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(range_count, UINT64_MAX), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(on_error, LR_ON_ERROR_ABORT), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(on_error, LR_ON_ERROR_HOLD), LR_OK);
	CHECK_EQ(TRY(on_error, 3), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(granularity, 2), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(pid, -1), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(page_size, PAGE), LR_OK);
	CHECK_EQ(TRY(page_size, 1), LR_ERR_ARGUMENT);
	CHECK_EQ(TRY(page_size, 8192), LR_ERR_ARGUMENT);
	CHECK(TRY(event_fd, 12345) < 0);
	CHECK_EQ(lr_session_serve(NULL, &good, NULL, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_serve(opened, NULL, NULL, NULL), LR_ERR_ARGUMENT);
	tear_down();
}

static int try_fd(int fd)
{
	struct peer other = peer;
	struct lr_peer_range range = whole_range(&peer);
	lr_session *session = NULL;
	int code;

	other.uffd = fd;
	code = try_to_serve(&other, &range, 1, -1, &session);
	lr_session_close(session);
	return code;
}

static void descriptors_of_another_kind(void)
{
	int pipes[2], fresh, signalling;
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS};

	set_up();
	CHECK_EQ(try_fd(-1), LR_ERR_ARGUMENT);
	CHECK_EQ(try_fd(12345), LR_ERR_ARGUMENT);
	CHECK_CALL(pipe(pipes));
	CHECK_EQ(try_fd(pipes[0]), LR_ERR_ARGUMENT);
	CHECK_EQ(try_fd((int)CHECK_CALL(open("/dev/null", O_RDWR))), LR_ERR_ARGUMENT);
	CHECK_EQ(try_fd((int)CHECK_CALL(eventfd(0, 0))), LR_ERR_ARGUMENT);
	CHECK_EQ(try_fd((int)CHECK_CALL(socket(AF_UNIX, SOCK_STREAM, 0))), LR_ERR_ARGUMENT);
	/* One that was not initialised, and one that has no messages. */
	fresh = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);
	CHECK_EQ(try_fd(fresh), LR_ERR_ARGUMENT);
	signalling = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);
	CHECK_CALL(ioctl(signalling, UFFDIO_API, &api));
	CHECK_EQ(try_fd(signalling), LR_ERR_UNSUPPORTED);
	tear_down();
}

/* One that tells of forks would need one more server for each. */
static void one_that_tells_of_forks(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	int fd = kernel_open_raw(O_CLOEXEC | O_NONBLOCK);

	set_up();
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		SKIP("UFFD_FEATURE_EVENT_FORK is not allowed here: %s", strerror(errno));
	CHECK_EQ(try_fd(fd), LR_ERR_UNSUPPORTED);
	tear_down();
}

static void a_peer_that_ended(void)
{
	struct lr_peer_range range;
	lr_session *session = NULL;
	int status;

	set_up();
	range = whole_range(&peer);
	CHECK_CALL(kill(peer.pid, SIGKILL));
	CHECK_EQ(waitpid(peer.pid, &status, 0), peer.pid);
	CHECK_EQ(try_to_serve(&peer, &range, 1, -1, &session), LR_ERR_GONE);
}

/* ---- States ---- */

static int try_state(int state)
{
	struct lr_peer_range range = whole_range(&peer);
	lr_session *session = NULL;
	int code = try_to_serve(&peer, &range, 1, state, &session);

	CHECK_EQ(code == LR_OK, session != NULL);
	if (session)
		CHECK_EQ(peer_do(&peer, touch_page, 0, 0), 0);
	lr_session_close(session);
	return code;
}

static int memory_file(uint64_t bytes, int seals)
{
	int fd = (int)CHECK_CALL(memfd_create("state", MFD_CLOEXEC | MFD_ALLOW_SEALING));

	CHECK_CALL(ftruncate(fd, (off_t)bytes));
	CHECK_CALL(fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

/* A copy, to be changed, of a state that is good. */
static uint8_t *copy_of_state(int from, int seals, int *ret_fd, uint64_t *ret_bytes)
{
	uint64_t bytes = (uint64_t)lseek(from, 0, SEEK_END);
	uint8_t *to, *old = mmap(NULL, bytes, PROT_READ, MAP_SHARED, from, 0);

	CHECK(old != MAP_FAILED);
	*ret_fd = memory_file(bytes, seals);
	to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *ret_fd, 0);
	CHECK(to != MAP_FAILED);
	for (uint64_t at = 0; at < bytes; at += PAGE)
		if (!kernel_is_zero(old + at, PAGE))
			memcpy(to + at, old + at, PAGE);
	munmap(old, bytes);
	*ret_bytes = bytes;
	return to;
}

static void states_of_another_kind(void)
{
	int state, other;
	uint64_t bytes;
	uint8_t *memory;

	set_up();
	state = new_state();
	bytes = (uint64_t)lseek(state, 0, SEEK_END);
	CHECK_EQ(try_state(12345), LR_ERR_STATE);
	CHECK_EQ(try_state(peer.uffd), LR_ERR_STATE);
	CHECK_EQ(try_state((int)CHECK_CALL(open("/dev/null", O_RDWR))), LR_ERR_STATE);
	CHECK_EQ(try_state((int)CHECK_CALL(open("/proc/self/exe", O_RDONLY))), LR_ERR_STATE);
	CHECK_EQ(try_state(memory_file(bytes, 0)), LR_ERR_STATE);
	CHECK_EQ(try_state(memory_file(bytes, F_SEAL_GROW)), LR_ERR_STATE);
	CHECK_EQ(try_state(memory_file(bytes, F_SEAL_SHRINK | F_SEAL_GROW)), LR_ERR_STATE);
	CHECK_EQ(try_state(memory_file(bytes - PAGE, F_SEAL_SHRINK | F_SEAL_GROW)), LR_ERR_STATE);
	CHECK_EQ(try_state(memory_file(bytes + PAGE, F_SEAL_SHRINK | F_SEAL_GROW)), LR_ERR_STATE);
	/* Good in all but that it could be made shorter while it is in use. */
	munmap(copy_of_state(state, 0, &other, &bytes), bytes);
	CHECK_EQ(try_state(other), LR_ERR_STATE);
	memory = copy_of_state(state, F_SEAL_SHRINK | F_SEAL_GROW, &other, &bytes);
	CHECK_EQ(try_state(other), LR_OK);
	/* What may not be written is of no use. */
	munmap(memory, bytes);
	CHECK_CALL(fcntl(other, F_ADD_SEALS, F_SEAL_WRITE));
	CHECK(try_state(other) < 0);
	/* Each byte of what it says that it is. */
	memory = copy_of_state(state, F_SEAL_SHRINK | F_SEAL_GROW, &other, &bytes);
	for (size_t i = 0; i < offsetof(struct lr_kept_header, told); i++) {
		if (i >= offsetof(struct lr_kept_header, is_settled)
		    && i < offsetof(struct lr_kept_header, kind))
			continue;
		memory[i] ^= 1;
		CHECK_EQ(try_state(other), LR_ERR_STATE);
		memory[i] ^= 1;
	}
	CHECK_EQ(try_state(other), LR_OK);
	CHECK_EQ(try_state(state), LR_OK);
	tear_down();
}

static void states_of_another_image(void)
{
	struct image second;
	lr_image *of_second;
	int32_t state;

	set_up();
	image_make(&second, PAGE, 16384, PAGES * PAGE, "rd");
	CHECK_EQ(lr_image_open(second.path, &of_second, NULL), LR_OK);
	/* (Those that the tests build say nothing of their content.) */
	of_second->info.digest[31] ^= 1;
	CHECK_EQ(lr_serve_state(of_second, 0, &state, NULL), LR_OK);
	CHECK_EQ(try_state(state), LR_ERR_STATE);
	lr_image_close(of_second);
	image_fini(&second);
	tear_down();
}

/* As lr_kept_open does, but without the lock, which the mapping would keep as well. */
static void map_unlocked(struct lr_kept *kept, int state, const struct lr_kept_kind *kind)
{
	uint8_t *memory;

	CHECK_EQ(lr_kept_open(kept, state, kind, NULL), LR_OK);
	memory = mmap(NULL, kept->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, state, 0);
	CHECK(memory != MAP_FAILED);
	kept->header = (struct lr_kept_header *)memory;
	for (int i = 0; i < 2; i++)
		kept->tables[i] =
			(struct lr_kept_table *)(memory
						 + ((uint8_t *)kept->tables[i] - kept->memory));
	lr_kept_close(kept);
}

/* Tables of pieces as no server leaves them. */
static void states_with_impossible_pieces(void)
{
	lr_session *session;
	struct lr_kept kept;
	struct lr_kept_kind kind;
	struct lr_kept_table *table;
	struct lr_kept_piece *pieces;
	uint64_t start, all = PAGES * PAGE;
	int state;

	set_up();
	start = (uintptr_t)peer.memory;
	state = new_state();
	session = serve(&peer, state);
	kind = session->kept.kind;
	lr_session_close(session);
	map_unlocked(&kept, state, &kind);
	table = lr_kept_current(&kept);
	CHECK(table);
	pieces = lr_kept_pieces(table);
	CHECK_EQ(table->count, 1);
#define WITH(field, value)                                                                         \
	({                                                                                         \
		struct lr_kept_table *now = lr_kept_current(&kept);                                \
		struct lr_kept_piece before = pieces[0];                                           \
		int code;                                                                          \
		CHECK(now == table);                                                               \
		field = value;                                                                     \
		code = try_state(state);                                                           \
		table->count = 1;                                                                  \
		table->unmapped_count = 0;                                                         \
		table->plain_pages = 0;                                                            \
		pieces[0] = before;                                                                \
		atomic_store(&kept.header->current, table == kept.tables[0] ? 1 : 2);              \
		code;                                                                              \
	})
	CHECK_EQ(WITH(table->count, kind.pieces_max + 1), LR_ERR_STATE);
	CHECK_EQ(WITH(table->count, UINT32_MAX), LR_ERR_STATE);
	CHECK_EQ(WITH(table->count, 2), LR_ERR_STATE);
	CHECK_EQ(WITH(table->unmapped_count, 65), LR_ERR_STATE);
	CHECK_EQ(WITH(table->unmapped_count, 1), LR_ERR_STATE);
	CHECK_EQ(WITH(table->plain_pages, UINT64_MAX), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].region, 1), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].start, start + 1), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].start, start + all), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].start, start + 2 * all), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].end, 0), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].end, UINT64_MAX), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].offset, PAGE), LR_ERR_STATE);
	CHECK_EQ(WITH(pieces[0].offset, UINT64_MAX - PAGE + 1), LR_ERR_STATE);
	/* Two that have the same part of the region. */
	pieces[1] = pieces[0];
	pieces[1].start += all;
	pieces[1].end += all;
	CHECK_EQ(WITH(table->count, 2), LR_ERR_STATE);
	CHECK_EQ(try_state(state), LR_OK);
	tear_down();
}

/* Messages that no kernel writes. */
static void states_with_impossible_messages(void)
{
	static const struct {
		uint8_t event;
		uint64_t fields[3];
	} bad[] = {
		{UFFD_EVENT_REMOVE, {PAGE * 4, 0, 0}},
		{UFFD_EVENT_REMOVE, {0, UINT64_MAX, 0}},
		{UFFD_EVENT_REMOVE, {1, PAGE, 0}},
		{UFFD_EVENT_UNMAP, {UINT64_MAX - 5, 3, 0}},
		{UFFD_EVENT_REMAP, {0, PAGE, UINT64_MAX - PAGE + 1}},
		{UFFD_EVENT_REMAP, {PAGE, UINT64_MAX - PAGE + 1, PAGE}},
		{UFFD_EVENT_REMAP, {PAGE, 0, 0}},
		{UFFD_EVENT_FORK, {3, 4, 5}},
		{255, {1, 2, 3}},
	};

	set_up();
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int state = new_state();
		struct uffd_msg message = {.event = bad[i].event};
		uint8_t at[4096];
		lr_session *session = serve(&peer, state);

		memcpy(&message.arg, bad[i].fields, sizeof(bad[i].fields));
		/* Those about the peer's memory: its start is added where that makes sense. */
		if (i == 0) {
			message.arg.remove.start += (uintptr_t)peer.memory;
			message.arg.remove.end = (uintptr_t)peer.memory + PAGE;
		}
		lr_session_close(session);
		memset(at, 0, sizeof(at));
		for (int j = 0; j < LR_UFFD_MESSAGES_MAX; j++)
			memcpy(at + j * sizeof(message), &message, sizeof(message));
		CHECK_EQ(pwrite(state, at, sizeof(at), 4096), sizeof(at));
		session = serve(&peer, state);
		CHECK_EQ(stats_of(session).pages_total, PAGES);
		CHECK_EQ(peer_do(&peer, check_pages, 0, PAGES), 0);
		lr_session_close(session);
		close(state);
	}
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(ranges_that_cannot_be),         CHECK_CASE(ranges_that_overlap),
	CHECK_CASE(options_that_cannot_be),        CHECK_CASE(descriptors_of_another_kind),
	CHECK_CASE(one_that_tells_of_forks),       CHECK_CASE(a_peer_that_ended),
	CHECK_CASE(states_of_another_kind),        CHECK_CASE(states_of_another_image),
	CHECK_CASE(states_with_impossible_pieces), CHECK_CASE(states_with_impossible_messages),
};
CHECK_MAIN(cases)
