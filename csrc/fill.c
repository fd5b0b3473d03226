#include "fill.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "huge.h"
#include "jobs.h"

/* How many of the clusters that are wanted first a worker loads between two looks at the memory
 * that is left. */
#define FIRST_STEP 8u
/* What a step of zeros may take: page tables. */
#define ZERO_ROOM_BYTES (1u << 20)
/* How often, and after how long, a range is tried to be given back. */
#define RELEASE_TRIES    100
#define RELEASE_PAUSE_NS 2000000

/* A failure that says something of one cluster, which is fenced, or of one region, which was
 * closed: the rest goes on. */
static bool goes_on(int code)
{
	return code != LR_ERR_NOMEM && code != LR_ERR_GONE;
}

static bool is_over(const struct lr_fill *fill)
{
	return atomic_load_explicit(&fill->is_stopping, memory_order_relaxed)
	       || !goes_on(atomic_load_explicit(&fill->code, memory_order_relaxed));
}

/* Note a result: what ends it all ends it for all workers. */
static void note(struct lr_fill *fill, int code)
{
	if (!goes_on(code))
		atomic_store_explicit(&fill->code, code, memory_order_relaxed);
}

/* Each worker may load as much before the next looks. */
static bool is_room(struct lr_fill *fill, uint64_t bytes)
{
	bool is_room = lr_headroom_allows(&fill->headroom, (fill->worker_count + 1) * bytes);

	if (!is_room)
		note(fill, LR_ERR_NOMEM);
	return is_room;
}

/* Have a cluster loaded by the feed: also one that cannot be loaded, to be fenced. */
static int feed(struct lr_worker *worker, struct lr_range *range, uint64_t cluster)
{
	struct lr_problem problem = {0};
	uint64_t run;
	int code = lr_feed_load(&worker->feed, range, cluster, cluster + 1, &run, &problem);

	/* The program closed all descriptors: the pager has its own, this thread not. */
	return code < 0 && problem.os_error == EBADF ? LR_ERR_GONE : code;
}

/* ---- The clusters that are wanted first ---- */

static void fill_first(struct lr_worker *worker)
{
	struct lr_fill *fill = worker->fill;
	const struct lr_target *target = fill->pager->target;
	uint64_t bytes = FIRST_STEP
			 * (uint64_t)(target->is_huge ? target->host_page
						      : target->image->info.cluster_size);
	struct lr_range *range;
	uint64_t cluster;

	for (uint32_t i = 0; !is_over(fill) && (i % FIRST_STEP || is_room(fill, bytes))
			     && lr_first_take(&fill->first, &range, &cluster);
	     i++)
		note(fill, feed(worker, range, cluster));
	note(fill, lr_feed_finish(&worker->feed, NULL));
}

/* ---- Chunks ---- */

/* Wait for what a stage was given last. */
static void collect(struct lr_worker *worker, uint32_t number)
{
	struct lr_stage *stage = &worker->stages[number];
	struct lr_chunk *chunk = &worker->chunks[number];
	int code;

	if (!stage->is_used)
		return;
	code = lr_stage_wait(stage);
	note(worker->fill, code);
	if (code < 0)
		lr_chunks_put(&worker->fill->chunks, chunk, LR_CHUNK_FAILED);
}

/* Decode what is missing of a chunk. It is LR_CHUNK_TODO still where it was left: somebody came to
 * touch it, and has it brought himself. */
static enum lr_chunk_state gather(struct lr_worker *worker, const struct lr_chunk *chunk,
				  struct lr_stage *stage)
{
	struct lr_fill *fill = worker->fill;
	const struct lr_image_info *info = &fill->pager->target->image->info;
	struct lr_decoder *decoder = &worker->feed.decoder;
	uint64_t first = chunk->range->region.first_cluster, cluster_size = info->cluster_size;
	uint64_t cluster = first + chunk->offset / cluster_size;
	uint64_t end = first + (chunk->offset + chunk->bytes + cluster_size - 1) / cluster_size;
	const _Atomic uint64_t *touched = &fill->pager->loader.touched;
	uint64_t before = atomic_load_explicit(touched, memory_order_relaxed);
	enum lr_chunk_state state = LR_CHUNK_ZERO;
	struct lr_problem problem;

	for (; cluster < end && !is_over(fill); cluster++) {
		uint64_t now = atomic_load_explicit(touched, memory_order_relaxed);
		int code;

		if (now != before && lr_chunk_has(chunk, now - 1, cluster_size)
		    && lr_stage_data_pages(stage) > 0)
			return LR_CHUNK_TODO;
		if (lr_target_is_settled(fill->pager->target, chunk->range, cluster))
			continue;
		code = lr_decoder_find(decoder, &chunk->range->region, cluster, &problem);
		if (code == LR_OK)
			code = lr_stage_add(stage, decoder, &problem);
		if (code < 0) {
			note(fill, feed(worker, chunk->range, cluster));
			state = LR_CHUNK_FAILED;
		} else if (decoder->info.data_pages > 0 && state == LR_CHUNK_ZERO) {
			state = LR_CHUNK_DONE;
		}
	}
	return cluster < end ? LR_CHUNK_TODO : state;
}

/* Where host pages are larger than clusters, and no larger than a chunk: as others load them. Those
 * without data are left alone, as zeros are. */
static void fill_page(struct lr_worker *worker, const struct lr_chunk *chunk)
{
	struct lr_target *target = worker->fill->pager->target;
	struct lr_range *range = chunk->range;
	enum lr_chunk_state state = LR_CHUNK_ZERO;

	for (uint64_t offset = chunk->offset; offset < chunk->offset + chunk->bytes;
	     offset += target->host_page) {
		uint64_t cluster = lr_target_cluster(target, range, offset);
		int code;

		if (lr_target_is_settled(target, range, cluster)
		    || !lr_huge_has_data(&worker->feed.decoder, target, range, offset))
			continue;
		code = feed(worker, range, cluster);
		note(worker->fill, code);
		if (code < 0)
			state = LR_CHUNK_FAILED;
		else if (state == LR_CHUNK_ZERO)
			state = LR_CHUNK_DONE;
	}
	lr_chunks_put(&worker->fill->chunks, chunk, state);
}

static void fill_chunk(struct lr_worker *worker, const struct lr_chunk *chunk)
{
	struct lr_fill *fill = worker->fill;
	uint32_t number = worker->next;
	struct lr_stage *stage = &worker->stages[number];
	enum lr_chunk_state state;

	if (fill->pager->target->is_huge) {
		fill_page(worker, chunk);
		return;
	}
	collect(worker, number);
	worker->chunks[number] = *chunk;
	worker->next = (number + 1) % LR_FILL_STAGES;
	lr_stage_begin(stage, chunk->range, chunk->offset, chunk->bytes, chunk->lead);
	state = gather(worker, chunk, stage);
	/* Put back before it is in place: what comes of it is known when all workers are done. */
	lr_chunks_put(&fill->chunks, chunk, state);
	if (state != LR_CHUNK_ZERO)
		lr_stage_submit(stage, fill->pager);
}

static void fill_chunks(struct lr_worker *worker)
{
	struct lr_fill *fill = worker->fill;
	struct lr_chunk chunk;

	while (!is_over(fill)
	       && lr_chunks_take(
		       &fill->chunks,
		       atomic_load_explicit(&fill->pager->loader.touched, memory_order_relaxed),
		       &chunk)) {
		if (lr_range_state(chunk.range) != LR_RANGE_ACTIVE)
			lr_chunks_put(&fill->chunks, &chunk, LR_CHUNK_FAILED);
		else if (is_room(fill, 2 * chunk.bytes))
			fill_chunk(worker, &chunk);
	}
	for (uint32_t i = 0; i < LR_FILL_STAGES; i++)
		collect(worker, i);
	note(fill, lr_feed_finish(&worker->feed, NULL));
}

/* ---- The end ---- */

static void set_state(_Atomic uint32_t *state, int code)
{
	/* Release: partner of the acquire in lr_fill_wait. */
	atomic_store_explicit(state, goes_on(code) ? LR_FILL_COMPLETE : LR_FILL_STOPPED,
			      memory_order_release);
	syscall(SYS_futex, state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Give back what is complete. Not to be had while somebody changes it, or forks: then it stays as
 * it is, which costs him a wait and nothing else. */
static void release(struct lr_fill *fill, struct lr_range *range)
{
	struct timespec pause = {.tv_nsec = RELEASE_PAUSE_NS};
	int code = LR_ERR_BUSY;

	for (int tries = 0; tries < RELEASE_TRIES && code == LR_ERR_BUSY && !is_over(fill);
	     tries++) {
		struct lr_job job = {
			.range = range, .act = fill->release, .context = &fill->chunks};

		if (tries > 0)
			nanosleep(&pause, NULL);
		lr_pager_submit(fill->pager, &job);
		code = lr_job_wait(&job);
	}
}

/* What of a range is not there yet, when it stays registered: its spans of zeros. Whoever waited
 * for the fill may give it to system calls, which are not served everywhere. */
static void fill_zeros(struct lr_worker *worker, struct lr_range *range)
{
	struct lr_fill *fill = worker->fill;
	uint64_t cluster = range->region.first_cluster, run;
	uint64_t end = cluster + range->region.cluster_count;
	struct lr_problem problem;

	for (; cluster < end && !is_over(fill) && is_room(fill, ZERO_ROOM_BYTES); cluster += run)
		note(fill, lr_feed_load(&worker->feed, range, cluster, end, &run, &problem));
	note(fill, lr_feed_finish(&worker->feed, NULL));
}

/* By the last worker. */
static void end(struct lr_worker *worker)
{
	struct lr_fill *fill = worker->fill;
	struct lr_target *target = fill->pager->target;

	for (uint32_t i = 0;
	     i < target->image->info.region_count && !fill->first_only && !is_over(fill); i++) {
		struct lr_range *range = &target->ranges[i];

		if (lr_range_state(range) == LR_RANGE_ACTIVE && fill->release && !range->is_owned
		    && lr_chunks_complete(&fill->chunks, range))
			release(fill, range);
		if (lr_range_state(range) == LR_RANGE_ACTIVE)
			fill_zeros(worker, range);
	}
	set_state(&fill->state, atomic_load_explicit(&fill->code, memory_order_relaxed));
	lr_target_notify(target);
}

/* True for the last. */
static bool leave(_Atomic uint32_t *left)
{
	/* What all have done is seen by the last. */
	return atomic_fetch_sub_explicit(left, 1, memory_order_acq_rel) == 1;
}

/* A process that is killed ends when its last thread does, and those of the lowest priority may
 * wait for that long. Its connections must not. */
static void keep_descriptors(const struct lr_fill *fill)
{
	const struct lr_pager *pager = fill->pager;
	int own[3 + LR_HEADROOM_DESCRIPTORS_MAX];
	unsigned count = lr_headroom_list(&fill->headroom, own);

	own[count++] = pager->target->image->source.fd;
	own[count++] = pager->target->event_fd;
	own[count++] = pager->event_fd;
	lr_thread_keep(own, count);
}

static void *run(void *argument)
{
	struct lr_worker *worker = argument;
	struct lr_fill *fill = worker->fill;

	if (fill->pager->target->is_remote)
		keep_descriptors(fill);
	/* Beside a program it must never keep a fault waiting. */
	if (!fill->is_awaited)
		lr_thread_yield_to_all();
	/* A peer's pages are installed by one thread: whoever goes on where that was killed knows
	 * when it has ended (kept.h). */
	worker->feed.installs = fill->is_awaited && !fill->pager->target->is_remote;
	fill_first(worker);
	worker->feed.installs = false;
	if (leave(&fill->left_first))
		set_state(&fill->first_state,
			  atomic_load_explicit(&fill->code, memory_order_relaxed));
	if (fill->is_awaited)
		lr_thread_yield_to_all();
	atomic_store_explicit(&fill->pager->is_filling, !fill->first_only && !is_over(fill),
			      memory_order_relaxed);
	if (!fill->first_only)
		fill_chunks(worker);
	for (uint32_t i = 0; i < LR_FILL_STAGES; i++)
		lr_stage_close(&worker->stages[i]);
	if (leave(&fill->left)) {
		atomic_store_explicit(&fill->pager->is_filling, false, memory_order_relaxed);
		end(worker);
	}
	return NULL;
}

static int start_thread(struct lr_worker *worker)
{
	int error = lr_thread_start(&worker->thread, run, worker);

	if (error)
		return error == ENOMEM ? LR_ERR_NOMEM : LR_ERR_LIMIT;
	pthread_setname_np(worker->thread, "lazyrestore-fil");
	return LR_OK;
}

/* ---- The beginning ---- */

/* As many as are wanted, and of use. */
static uint32_t count_workers(const struct lr_fill *fill, const struct lr_fill_options *options)
{
	uint64_t wanted = options ? options->threads : 0, use = fill->first.count / FIRST_STEP + 1;
	cpu_set_t processors;

	if (wanted == 0 && sched_getaffinity(0, sizeof(processors), &processors) == 0)
		wanted = (uint64_t)CPU_COUNT(&processors);
	if (!fill->first_only && use < fill->chunks.count)
		use = fill->chunks.count;
	if (wanted > use)
		wanted = use;
	if (wanted > LR_FILL_THREADS_MAX)
		wanted = LR_FILL_THREADS_MAX;
	return wanted ? (uint32_t)wanted : 1;
}

static int open_worker(struct lr_fill *fill, struct lr_worker *worker)
{
	int code = lr_feed_open(&worker->feed, fill->pager);

	worker->fill = fill;
	for (uint32_t i = 0; i < LR_FILL_STAGES && code == LR_OK; i++)
		code = lr_stage_open(&worker->stages[i], fill->pager->target);
	return code;
}

/* In a child `is_here` is false: the stages' memory did not come along. */
static void give_back(struct lr_fill *fill, bool is_here)
{
	atomic_store_explicit(&fill->state, LR_FILL_NONE, memory_order_relaxed);
	atomic_store_explicit(&fill->first_state, LR_FILL_NONE, memory_order_relaxed);
	for (uint32_t i = 0; i < fill->worker_count; i++) {
		for (uint32_t j = 0; j < LR_FILL_STAGES && is_here; j++)
			lr_stage_close(&fill->workers[i].stages[j]);
		lr_feed_close(&fill->workers[i].feed);
	}
	free(fill->workers);
	fill->workers = NULL;
	fill->worker_count = 0;
	if (is_here)
		lr_first_close(&fill->first);
	else
		lr_first_abandon(&fill->first);
	lr_chunks_close(&fill->chunks);
	lr_headroom_close(&fill->headroom);
}

static int open_all(struct lr_fill *fill, const struct lr_fill_options *options)
{
	int code = lr_first_open(&fill->first, fill->pager, options ? options->first : NULL,
				 options ? options->first_count : 0);

	if (code == LR_OK)
		code = lr_chunks_open(&fill->chunks, fill->pager->target);
	if (code < 0)
		return code;
	fill->worker_count = count_workers(fill, options);
	fill->workers = calloc(fill->worker_count, sizeof(*fill->workers));
	if (!fill->workers) {
		fill->worker_count = 0;
		return LR_ERR_NOMEM;
	}
	for (uint32_t i = 0; i < fill->worker_count && code == LR_OK; i++)
		code = open_worker(fill, &fill->workers[i]);
	return code;
}

/* Fewer threads than were wanted will do, but for none. */
static int start_all(struct lr_fill *fill)
{
	uint32_t wanted = fill->worker_count, started = 0;
	int code = LR_OK;

	atomic_store_explicit(&fill->left, wanted, memory_order_relaxed);
	atomic_store_explicit(&fill->left_first, wanted, memory_order_relaxed);
	while (started < wanted && code == LR_OK) {
		code = start_thread(&fill->workers[started]);
		started += code == LR_OK;
	}
	if (started == 0)
		return code;
	for (uint32_t i = started; i < wanted; i++) {
		if (leave(&fill->left_first))
			set_state(&fill->first_state, LR_OK);
		if (leave(&fill->left))
			set_state(&fill->state, LR_OK);
	}
	fill->started_count = started;
	return LR_OK;
}

int lr_fill_start(struct lr_fill *fill, struct lr_pager *pager,
		  const struct lr_fill_options *options,
		  int (*release_range)(struct lr_loader *loader, struct lr_job *job))
{
	int code;

	if (fill->is_started
	    || atomic_load_explicit(&pager->target->is_mapping, memory_order_acquire))
		return LR_ERR_BUSY;
	fill->pager = pager;
	fill->release = release_range;
	fill->first_only = options && options->first_only;
	fill->is_awaited = options && options->is_awaited;
	code = lr_headroom_open_for(&fill->headroom, "/", pager->target->peer);
	if (code < 0)
		return code;
	code = open_all(fill, options);
	if (code == LR_OK) {
		atomic_store_explicit(&fill->state, LR_FILL_RUNNING, memory_order_relaxed);
		atomic_store_explicit(&fill->first_state, LR_FILL_RUNNING, memory_order_relaxed);
		lr_first_read_ahead(&fill->first);
		if (fill->is_awaited && !pager->target->is_remote)
			lr_pager_share(pager);
		code = start_all(fill);
	}
	fill->is_started = code == LR_OK;
	if (code < 0)
		give_back(fill, true);
	return code;
}

void lr_fill_abandon(struct lr_fill *fill)
{
	/* Maybe it was just being started. */
	atomic_store_explicit(&fill->state, LR_FILL_NONE, memory_order_relaxed);
	atomic_store_explicit(&fill->first_state, LR_FILL_NONE, memory_order_relaxed);
	if (!fill->is_started)
		return;
	fill->is_started = false;
	give_back(fill, false);
}

void lr_fill_stop(struct lr_fill *fill)
{
	struct sched_param none = {0};

	if (!fill->is_started)
		return;
	atomic_store_explicit(&fill->is_stopping, true, memory_order_relaxed);
	/* They are waited for now: not at the lowest priority any more, where that is allowed. */
	for (uint32_t i = 0; i < fill->started_count; i++)
		pthread_setschedparam(fill->workers[i].thread, SCHED_OTHER, &none);
	for (uint32_t i = 0; i < fill->started_count; i++)
		pthread_join(fill->workers[i].thread, NULL);
	fill->is_started = false;
	give_back(fill, true);
}
