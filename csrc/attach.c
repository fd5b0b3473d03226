/* lr_attach and its companions: what a program does with an attachment. */
#include "attach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "early.h"
#include "stats.h"

#define DEADLINE_MS_DEFAULT 5000u
#define RETRY_MS            20
/* Not MOVE: it takes page frames from its caller's own memory. */
#define WANTED_FEATURES                                                                            \
	(LR_UFFD_FEATURE_THREAD_ID | LR_UFFD_FEATURE_EXACT_ADDRESS | LR_UFFD_FEATURE_POISON        \
	 | LR_UFFD_FEATURE_EVENT_REMOVE | LR_UFFD_FEATURE_EVENT_REMAP                              \
	 | LR_UFFD_FEATURE_EVENT_UNMAP)

static _Thread_local struct lr_refused last_refusal;

const char *lr_attach_get_refusal(uint32_t *ret_code)
{
	if (ret_code)
		*ret_code = last_refusal.code;
	return last_refusal.text;
}

static int problem_of(struct lr_problem *ret_problem, int code, int os_error)
{
	return lr_problem_set(ret_problem, code, code == LR_ERR_TIMEOUT ? 0 : os_error, LR_NOWHERE,
			      LR_NOWHERE);
}

static bool was_started(const struct lr_attachment *attachment)
{
	return lr_attachment_get_state(attachment) != LR_ATTACHMENT_CONNECTED;
}

/* ---- Connecting ------------------------------------------------------------------------------ */

static struct lr_talk begin_talk(const struct lr_attachment *attachment)
{
	return (struct lr_talk){
		.fd = attachment->connection,
		.deadline_ns = lr_clock_ns() + attachment->deadline_ms * 1000000ull,
	};
}

/* What was taken of a table that did not come whole. */
static void forget_table(struct lr_attachment *attachment)
{
	/* A child that is forked meanwhile goes over the places. */
	lr_attach_fork_block();
	free(attachment->regions);
	free(attachment->names);
	free(attachment->places);
	free(attachment->metadata);
	attachment->regions = NULL;
	attachment->names = NULL;
	attachment->places = NULL;
	attachment->metadata = NULL;
	lr_attach_fork_unblock();
}

/* Until somebody listens and speaks: a service may be about to start, or to start again. */
static int connect_to(struct lr_attachment *attachment, struct lr_talk *talk)
{
	bool is_known = attachment->regions != NULL;

	for (;;) {
		int code = lr_talk_connect(talk, &attachment->address);

		if (code == LR_OK) {
			code = lr_attach_hello(attachment, talk, &last_refusal);
			if (code < 0 && !is_known)
				forget_table(attachment);
			if (code < 0)
				lr_talk_close(talk);
		}
		if (!lr_attach_may_retry(code) || !lr_talk_pause(talk, RETRY_MS))
			return code;
	}
}

static int open_uffd(struct lr_attachment *attachment, uint32_t privilege,
		     struct lr_problem *ret_problem)
{
	int code;

	/* A child must not get a copy of a userfaultfd that it does not know of. */
	lr_attach_fork_block();
	code = lr_uffd_open(&attachment->uffd, privilege, WANTED_FEATURES, ret_problem);
	if (code == LR_OK) {
		if (attachment->uffd.device >= 0)
			close(attachment->uffd.device);
		attachment->uffd.device = -1;
		attachment->info.features = attachment->uffd.features;
		attachment->info.privilege = attachment->uffd.privilege;
		lr_attach_fork_watch(attachment);
	}
	lr_attach_fork_unblock();
	return code;
}

static int make(const char *socket, const struct lr_attach_options *options,
		lr_attachment **ret_attachment)
{
	struct lr_attachment *attachment = calloc(1, sizeof(*attachment));
	int code;

	if (!attachment)
		return LR_ERR_NOMEM;
	attachment->uffd.fd = attachment->uffd.device = -1;
	attachment->connection = attachment->state_fd = -1;
	attachment->deadline_ms = options->deadline_ms ? options->deadline_ms : DEADLINE_MS_DEFAULT;
	attachment->flags = options->flags;
	attachment->host_page = (uint32_t)sysconf(_SC_PAGESIZE);
	attachment->pid = getpid();
	pthread_mutex_init(&attachment->lock, NULL);
	attachment->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	code = attachment->event_fd < 0 ? lr_problem_from_errno(NULL, errno)
					: lr_talk_address(socket, &attachment->address);
	if (code < 0) {
		lr_detach(attachment);
		return code;
	}
	*ret_attachment = attachment;
	return LR_OK;
}

int lr_attach_connect(const char *socket, const struct lr_attach_options *options,
		      lr_attachment **ret_attachment, struct lr_problem *ret_problem)
{
	struct lr_attach_options defaults = {0};
	struct lr_attachment *attachment = NULL;
	struct lr_talk talk;
	int code;

	memset(&last_refusal, 0, sizeof(last_refusal));
	if (!options)
		options = &defaults;
	if (!socket)
		socket = getenv("LAZYRESTORE_SOCKET");
	if (!socket || !ret_attachment || options->privilege > LR_PRIVILEGE_USER_MODE_ONLY
	    || options->flags & ~(uint32_t)LR_ATTACH_METADATA)
		return problem_of(ret_problem, LR_ERR_ARGUMENT, 0);
	code = make(socket, options, &attachment);
	if (code < 0)
		return problem_of(ret_problem, code, 0);
	code = open_uffd(attachment, options->privilege, ret_problem);
	if (code == LR_OK) {
		talk = begin_talk(attachment);
		code = connect_to(attachment, &talk);
		attachment->connection = talk.fd;
		if (code < 0)
			problem_of(ret_problem, code, talk.os_error);
	}
	if (code < 0) {
		lr_detach(attachment);
		return code;
	}
	*ret_attachment = attachment;
	return LR_OK;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Nobody reads messages yet: so what sends one comes first. */
static int register_place(struct lr_attachment *attachment, const struct lr_attached *place,
			  struct lr_problem *ret_problem)
{
	void *memory = (void *)(uintptr_t)place->start;
	int code = lr_early_drop(place->start, place->bytes, ret_problem);

	if (code == LR_OK && madvise(memory, place->bytes, MADV_DONTFORK) < 0)
		code = lr_problem_from_errno(ret_problem, errno);
	if (code == LR_OK)
		code = lr_uffd_register(&attachment->uffd, place->start, place->bytes, ret_problem);
	return code;
}

int lr_attachment_add(lr_attachment *attachment, uint32_t region, void *address,
		      struct lr_problem *ret_problem)
{
	uint64_t start = (uint64_t)(uintptr_t)address, page = attachment->host_page, bytes;
	struct lr_attached place = {.start = start};
	int code;

	if (region >= attachment->info.region_count)
		return problem_of(ret_problem, LR_ERR_NOT_FOUND, 0);
	bytes = (attachment->regions[region].length + page - 1) / page * page;
	if (!lr_attach_is_mine(attachment) || was_started(attachment)
	    || attachment->places[region].start || start == 0 || start % page || bytes == 0
	    || start > UINT64_MAX - bytes)
		return problem_of(ret_problem, LR_ERR_ARGUMENT, 0);
	place.bytes = bytes;
	lr_attach_fork_block();
	code = register_place(attachment, &place, ret_problem);
	if (code == LR_OK)
		attachment->places[region] = place;
	lr_attach_fork_unblock();
	return code;
}

static int map_region(struct lr_attachment *attachment, uint32_t region,
		      struct lr_problem *ret_problem)
{
	uint64_t length = attachment->regions[region].length;
	void *memory;
	int code;

	if (length == 0)
		return LR_OK;
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return lr_problem_from_errno(ret_problem, errno);
	code = lr_attachment_add(attachment, region, memory, ret_problem);
	if (code < 0)
		munmap(memory, length);
	else
		attachment->places[region].is_owned = true;
	return code;
}

/* True once: nobody else does anything to it from then on. */
static bool take_place(struct lr_attachment *attachment, uint32_t region)
{
	struct lr_attached *place = &attachment->places[region];
	bool is_taken;

	/* Whoever fences has the lock meanwhile. */
	pthread_mutex_lock(&attachment->lock);
	is_taken = place->start && !place->is_gone;
	place->is_gone = true;
	pthread_mutex_unlock(&attachment->lock);
	return is_taken;
}

/* Empty it, and let nobody touch it. As registered memory goes this way, the pager is told. */
static void empty(const struct lr_attached *place)
{
	mmap((void *)(uintptr_t)place->start, place->bytes, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

/* Nobody reads the messages of what is not served yet: so there must be none. */
static void unwatch(const struct lr_attachment *attachment, const struct lr_attached *place)
{
	if (!attachment->is_running)
		lr_uffd_unregister(&attachment->uffd, place->start, place->bytes);
}

static int check_added(const struct lr_attachment *attachment, uint32_t region)
{
	if (region >= attachment->info.region_count)
		return LR_ERR_NOT_FOUND;
	if (!lr_attach_is_mine(attachment))
		return LR_ERR_CLOSED;
	return attachment->places[region].is_owned ? LR_ERR_ARGUMENT : LR_OK;
}

int lr_attachment_forget(lr_attachment *attachment, uint32_t region)
{
	int code = check_added(attachment, region);

	if (code == LR_OK && !take_place(attachment, region))
		code = LR_ERR_CLOSED;
	return code;
}

int lr_attachment_remember(lr_attachment *attachment, uint32_t region)
{
	int code = check_added(attachment, region);
	struct lr_attached *place;

	if (code < 0)
		return code;
	place = &attachment->places[region];
	pthread_mutex_lock(&attachment->lock);
	/* What was done to the others meanwhile, as far as it can be from here. */
	if (place->is_gone && attachment->is_fenced)
		mprotect((void *)(uintptr_t)place->start, place->bytes, PROT_NONE);
	place->is_gone = false;
	pthread_mutex_unlock(&attachment->lock);
	return LR_OK;
}

int lr_attachment_release(lr_attachment *attachment, uint32_t region)
{
	int code = lr_attachment_forget(attachment, region);

	if (code == LR_OK) {
		unwatch(attachment, &attachment->places[region]);
		empty(&attachment->places[region]);
	}
	return code;
}

/* ---- Starting -------------------------------------------------------------------------------- */

static int make_request(struct lr_attachment *attachment)
{
	uint32_t count = attachment->info.region_count;
	struct lr_wire_head head = {.first = LR_WIRE_VERSION};
	struct lr_wire_ranges ranges = {.page_size = attachment->host_page};
	uint8_t *at = malloc(sizeof(head) + sizeof(ranges) + count * sizeof(struct lr_wire_range));

	if (!at)
		return LR_ERR_NOMEM;
	attachment->request = at;
	at += sizeof(head) + sizeof(ranges);
	for (uint32_t i = 0; i < count; i++) {
		struct lr_wire_range range = {
			.address = attachment->places[i].start,
			.bytes = attachment->places[i].bytes,
			.region = i,
		};

		if (!range.address)
			continue;
		memcpy(at, &range, sizeof(range));
		at += sizeof(range);
		head.second++;
	}
	memcpy(head.magic, LR_WIRE_RANGES, LR_WIRE_MAGIC_BYTES);
	memcpy(attachment->request, &head, sizeof(head));
	memcpy(attachment->request + sizeof(head), &ranges, sizeof(ranges));
	attachment->request_bytes = (size_t)(at - attachment->request);
	return LR_OK;
}

/* By whoever listens, if the one that was asked first went away. */
static int be_served(struct lr_attachment *attachment, struct lr_problem *ret_problem)
{
	struct lr_talk talk = begin_talk(attachment);
	int code = lr_attach_hand_over(attachment, &talk, &last_refusal);

	while (lr_attach_may_retry(code) && lr_talk_pause(&talk, RETRY_MS)) {
		lr_talk_close(&talk);
		code = connect_to(attachment, &talk);
		if (code == LR_OK)
			code = lr_attach_hand_over(attachment, &talk, &last_refusal);
	}
	attachment->connection = talk.fd;
	return code < 0 ? problem_of(ret_problem, code, talk.os_error) : LR_OK;
}

int lr_attachment_start(lr_attachment *attachment, struct lr_problem *ret_problem)
{
	int code = LR_OK;

	memset(&last_refusal, 0, sizeof(last_refusal));
	if (!lr_attach_is_mine(attachment) || was_started(attachment) || attachment->request)
		return problem_of(ret_problem, LR_ERR_ARGUMENT, 0);
	code = make_request(attachment);
	if (code < 0)
		return problem_of(ret_problem, code, 0);
	if (attachment->request_bytes
	    == sizeof(struct lr_wire_head) + sizeof(struct lr_wire_ranges)) {
		/* Nothing to load. */
		lr_attach_stop(attachment);
		lr_attach_set_state(attachment, LR_ATTACHMENT_COMPLETE);
		return LR_OK;
	}
	code = be_served(attachment, ret_problem);
	if (code < 0)
		return code;
	lr_attach_fork_block();
	lr_attach_set_state(attachment, LR_ATTACHMENT_SERVED);
	code = lr_attach_watch(attachment);
	if (code < 0)
		lr_attach_set_state(attachment, LR_ATTACHMENT_CONNECTED);
	lr_attach_fork_unblock();
	return code < 0 ? problem_of(ret_problem, code, 0) : LR_OK;
}

int lr_attach(const char *socket, const struct lr_attach_options *options,
	      lr_attachment **ret_attachment, struct lr_problem *ret_problem)
{
	lr_attachment *attachment;
	int code;

	if (!ret_attachment)
		return problem_of(ret_problem, LR_ERR_ARGUMENT, 0);
	code = lr_attach_connect(socket, options, &attachment, ret_problem);
	if (code < 0)
		return code;
	for (uint32_t i = 0; i < attachment->info.region_count && code == LR_OK; i++)
		code = map_region(attachment, i, ret_problem);
	if (code == LR_OK)
		code = lr_attachment_start(attachment, ret_problem);
	if (code < 0) {
		lr_detach(attachment);
		return code;
	}
	*ret_attachment = attachment;
	return LR_OK;
}

/* ---- Ending ---------------------------------------------------------------------------------- */

static void let_go(struct lr_attachment *attachment, uint32_t region)
{
	const struct lr_attached *place = &attachment->places[region];

	if (!take_place(attachment, region))
		return;
	unwatch(attachment, place);
	if (place->is_owned)
		munmap((void *)(uintptr_t)place->start, place->bytes);
	else if (attachment->is_running)
		empty(place);
}

void lr_detach(lr_attachment *attachment)
{
	if (!attachment || !lr_attach_is_mine(attachment))
		return;
	/* Release: partner of the acquire in is_ending. */
	atomic_store_explicit(&attachment->is_ending, true, memory_order_release);
	lr_attach_ring(attachment);
	for (uint32_t i = 0; attachment->places && i < attachment->info.region_count; i++)
		let_go(attachment, i);
	lr_attach_fork_block();
	lr_attach_fork_forget(attachment);
	lr_attach_stop(attachment);
	if (lr_attach_has_bell(attachment))
		close(attachment->event_fd);
	lr_attach_fork_unblock();
	forget_table(attachment);
	free(attachment->request);
	pthread_mutex_destroy(&attachment->lock);
	free(attachment);
}
