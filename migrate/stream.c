/*
 * stream.c - both halves of the page stream. See stream.h for the rule; knows codec, proof and RAM, nothing of sockets
 * and time.
 *
 * Invariant (sender): every page whose newest copy is not surely in the destination's RAM has version > has, or force,
 * or is in a batch of the ring. Invariant (receiver): last_seq only grows; a batch is applied iff its seq was >
 * last_seq.
 */
#include "migrate/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* ---- what the destination has ---- */

int fvm_memory_create(struct fvm_ram *ram, struct fvm_memory **ret_memory)
{
    struct fvm_memory *m = calloc(1, sizeof(*m));
    if (!m)
        return FVM_ENOMEM;
    m->ram = ram;
    m->has = calloc(ram->page_count, sizeof(*m->has));
    m->force = calloc(ram->page_count, 1);
    m->parts = calloc(ram->page_count, sizeof(*m->parts));
    if (!m->has || !m->force || !m->parts || fvm_proof_init(&m->proof, ram) != 0) {
        fvm_memory_destroy(&m);
        return FVM_ENOMEM;
    }
    *ret_memory = m;
    return 0;
}

void fvm_memory_destroy(struct fvm_memory **memory_p)
{
    struct fvm_memory *m = *memory_p;
    if (!m)
        return;
    *memory_p = NULL;
    fvm_proof_fini(&m->proof);
    free(m->has);
    free(m->force);
    free(m->parts);
    free(m);
}

void fvm_memory_reset(struct fvm_memory *m, const uint8_t image_id[FVM_IMAGE_ID_BYTES])
{
    memcpy(m->image_id, image_id, FVM_IMAGE_ID_BYTES);
    memset(m->has, 0, m->ram->page_count * sizeof(*m->has));
    memset(m->force, 0, m->ram->page_count);
    m->sent_once = false;
}

static uint32_t version(const struct fvm_ram *ram, fvm_pfn pfn)
{
    return __atomic_load_n(&ram->version[pfn], __ATOMIC_RELAXED);
}

/* RAM pages in order, the hole skipped; page_count at the end. */
static fvm_pfn skip_hole(const struct fvm_ram *ram, fvm_pfn pfn)
{
    if (pfn < ram->low_bytes >> FVM_PAGE_SHIFT)
        return pfn;
    return ram->high_bytes ? FVM_MAX(pfn, FVM_RAM_HIGH_BASE >> FVM_PAGE_SHIFT) : ram->page_count;
}

/* The end of the stretch of RAM that pfn is in. */
static fvm_pfn stretch_end(const struct fvm_ram *ram, fvm_pfn pfn)
{
    uint64_t low = ram->low_bytes >> FVM_PAGE_SHIFT;
    return pfn < low ? low : ram->page_count;
}

/* How many of these are owed. Plain loads of what guests' stores change, so that the compiler takes many at once: who
 * acts on a page looks again. */
static uint64_t owed(const struct fvm_memory *m, fvm_pfn pfn, uint64_t count)
{
    const uint32_t *v = m->ram->version + pfn, *has = m->has + pfn;
    const uint8_t *force = m->force + pfn;
    uint32_t n = 0;
    for (uint64_t i = 0; i < count; i++)
        n += (v[i] > has[i]) | force[i];
    return n;
}

uint64_t fvm_memory_pending(const struct fvm_memory *m)
{
    uint64_t n = 0, count;
    for (fvm_pfn pfn = skip_hole(m->ram, 0); pfn < m->ram->page_count; pfn = skip_hole(m->ram, pfn + count)) {
        count = FVM_MIN(stretch_end(m->ram, pfn) - pfn, 4096ull);
        n += owed(m, pfn, count);
    }
    return n;
}

void fvm_memory_force(struct fvm_memory *m, fvm_pfn pfn) { m->force[pfn] = 1; }

/* ---- sender ---- */

void fvm_stream_tx_init(struct fvm_stream_tx *tx, struct fvm_memory *memory, struct fvm_codec *codec)
{
    *tx = (struct fvm_stream_tx){.memory = memory, .codec = codec, .next_seq = 1};
}

bool fvm_stream_tx_room(const struct fvm_stream_tx *tx) { return tx->count < FVM_STREAM_WINDOW; }

static void requeue(struct fvm_stream_tx *tx, const struct fvm_stream_batch *b)
{
    struct fvm_memory *m = tx->memory;
    for (uint32_t i = 0; i < b->run_count; i++)
        for (fvm_pfn pfn = b->runs[i].pfn; pfn < b->runs[i].pfn + b->runs[i].count; pfn++) {
            m->has[pfn] = 0; /* a newer copy on its way may be a delta to this one */
            m->force[pfn] = 1;
        }
    tx->resent_pages += b->pages;
    tx->lost_batches++;
}

static void ring_drop_first(struct fvm_stream_tx *tx)
{
    free(tx->ring[tx->first].runs);
    tx->ring[tx->first].runs = NULL;
    tx->first = (tx->first + 1) % FVM_STREAM_WINDOW;
    tx->count--;
}

void fvm_stream_tx_fini(struct fvm_stream_tx *tx)
{
    while (tx->count) {
        requeue(tx, &tx->ring[tx->first]);
        ring_drop_first(tx);
    }
}

enum { LOOK_PAGES = 64 };

/* The next page that may be owed, at or after pfn. */
static fvm_pfn look(const struct fvm_memory *m, fvm_pfn pfn)
{
    for (pfn = skip_hole(m->ram, pfn); pfn < m->ram->page_count;) {
        uint64_t count = FVM_MIN(stretch_end(m->ram, pfn) - pfn, (uint64_t)LOOK_PAGES - pfn % LOOK_PAGES);
        if (owed(m, pfn, count))
            break;
        pfn = skip_hole(m->ram, pfn + count);
    }
    return pfn;
}

/* Fills the codec's batch with what this round owes from *cursor on. */
static struct fvm_batch *fill(struct fvm_stream_tx *tx, fvm_pfn *cursor, uint32_t epoch)
{
    struct fvm_memory *m = tx->memory;
    struct fvm_batch *b = NULL;
    fvm_pfn pfn = look(m, *cursor);
    while (pfn < m->ram->page_count && !(b && fvm_batch_full(b))) {
        uint32_t v = version(m->ram, pfn);
        if ((m->force[pfn] || v > m->has[pfn]) && v <= epoch) {
            bool known = m->has[pfn] && !m->force[pfn];
            b = b ? b : fvm_codec_batch(tx->codec, m->sent_once);
            uint64_t hash = fvm_batch_add(b, pfn, fvm_ram_hva(m->ram, pfn << FVM_PAGE_SHIFT), known, m->parts[pfn]);
            fvm_proof_note(&m->proof, pfn, hash, epoch);
            m->has[pfn] = epoch;
            m->force[pfn] = 0;
        }
        pfn++;
        if (pfn % LOOK_PAGES == 0 || pfn == stretch_end(m->ram, pfn - 1))
            pfn = look(m, pfn);
    }
    *cursor = pfn;
    m->sent_once = m->sent_once || pfn >= m->ram->page_count;
    return b;
}

int fvm_stream_tx_next(struct fvm_stream_tx *tx, fvm_pfn *cursor, uint32_t epoch, bool compress, struct fvm_sealed *ret)
{
    fvm_assert(fvm_stream_tx_room(tx));
    struct fvm_batch *b = fill(tx, cursor, epoch);
    if (!b)
        return FVM_ENOENT;
    struct fvm_stream_batch sent = {.seq = tx->next_seq, .epoch = epoch, .run_count = b->run_count};
    sent.pages = b->data_pages + b->zero_pages;
    sent.runs = malloc(b->run_count * sizeof(*sent.runs));
    int rc = FVM_ENOMEM;
    if (sent.runs) {
        memcpy(sent.runs, b->runs, b->run_count * sizeof(*sent.runs));
        rc = fvm_codec_seal(tx->codec, sent.seq, compress, ret);
    }
    if (rc) {
        struct fvm_stream_batch undo = sent;
        undo.runs = b->runs;
        requeue(tx, &undo);
        free(sent.runs);
        return rc;
    }
    sent.bytes = (uint32_t)(ret->header_len + ret->payload_len);
    tx->next_seq++;
    tx->bytes_sent += sent.bytes;
    tx->data_pages += b->data_pages;
    tx->zero_pages += b->zero_pages;
    tx->ring[(tx->first + tx->count) % FVM_STREAM_WINDOW] = sent;
    tx->count++;
    return 0;
}

static bool listed(const uint64_t *list, size_t count, uint64_t seq)
{
    size_t lo = 0, hi = count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (list[mid] == seq)
            return true;
        if (list[mid] < seq)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

uint64_t fvm_stream_tx_ack(struct fvm_stream_tx *tx, uint64_t last_seq, const uint64_t *lost, size_t lost_count,
                           fvm_gpa *ret_first_gpa)
{
    uint64_t again = 0;
    if (last_seq < tx->next_seq && last_seq > tx->acked_seq)
        tx->acked_seq = last_seq;
    while (tx->count && tx->ring[tx->first].seq <= tx->acked_seq) {
        struct fvm_stream_batch *b = &tx->ring[tx->first];
        if (listed(lost, lost_count, b->seq)) {
            if (again == 0)
                *ret_first_gpa = b->runs[0].pfn << FVM_PAGE_SHIFT;
            again += b->pages;
            requeue(tx, b);
        } else {
            tx->bytes_acked += b->bytes;
        }
        ring_drop_first(tx);
    }
    return again;
}

/* ---- receiver ---- */

void fvm_stream_rx_init(struct fvm_stream_rx *rx, struct fvm_ram *ram, struct fvm_codec *codec, struct fvm_proof *proof)
{
    memset(rx, 0, sizeof(*rx));
    rx->ram = ram;
    rx->codec = codec;
    rx->proof = proof;
    rx->zero_hash = fvm_proof_zero_hash(NULL);
}

int fvm_stream_rx_settle(struct fvm_stream_rx *rx, uint64_t last_seq)
{
    if (last_seq > rx->last_seq && last_seq - rx->last_seq > FVM_STREAM_LOST_MAX - rx->lost_count)
        return FVM_EPROTO;
    while (rx->last_seq < last_seq)
        rx->lost[rx->lost_count++] = ++rx->last_seq;
    return 0;
}

void fvm_stream_rx_forget(struct fvm_stream_rx *rx, uint64_t handled_seq)
{
    uint32_t n = 0;
    while (n < rx->lost_count && rx->lost[n] <= handled_seq)
        n++;
    rx->lost_count -= n;
    memmove(rx->lost, rx->lost + n, rx->lost_count * sizeof(*rx->lost));
}

static void place_zero(struct fvm_stream_rx *rx, fvm_pfn pfn)
{
    static const uint8_t zeros[FVM_PAGE_SIZE];
    uint8_t *page = fvm_ram_hva(rx->ram, pfn << FVM_PAGE_SHIFT);
    if (version(rx->ram, pfn) != 0 && memcmp(page, zeros, FVM_PAGE_SIZE) != 0) {
        memset(page, 0, FVM_PAGE_SIZE);
        fvm_ram_mark_written(rx->ram, pfn << FVM_PAGE_SHIFT, FVM_PAGE_SIZE);
    }
    fvm_proof_note(rx->proof, pfn, rx->zero_hash, UINT32_MAX);
}

static void apply(struct fvm_stream_rx *rx, const struct fvm_batch *b)
{
    const uint8_t *data = b->data;
    for (uint32_t i = 0; i < b->run_count; i++) {
        const struct fvm_codec_run *run = &b->runs[i];
        for (fvm_pfn pfn = run->pfn; pfn < run->pfn + run->count; pfn++) {
            if (run->zero) {
                place_zero(rx, pfn);
                continue;
            }
            uint8_t *page = fvm_ram_hva(rx->ram, pfn << FVM_PAGE_SHIFT);
            data = fvm_batch_place(b, data, page);
            fvm_ram_mark_written(rx->ram, pfn << FVM_PAGE_SHIFT, FVM_PAGE_SIZE);
            fvm_proof_note(rx->proof, pfn, fvm_proof_hash_page(page, NULL), UINT32_MAX); /* of what is there now */
        }
    }
}

int fvm_stream_rx_batch(struct fvm_stream_rx *rx, const void *header, size_t header_len, void *payload,
                        size_t payload_len)
{
    struct fvm_codec_run hint;
    const struct fvm_batch *b;
    int rc = fvm_codec_open(rx->codec, rx->ram, header, header_len, payload, payload_len, &hint, &b);
    if (rc) {
        rx->corrupt++;
        if (!rx->quiet && fvm_log_nth(rx->corrupt))
            fvm_log(WARN, "migrate.corrupt", "gpa=0x%llx pages=%u after_seq=%llu count=%llu why=%s",
                    (unsigned long long)(hint.pfn << FVM_PAGE_SHIFT), hint.count, (unsigned long long)rx->last_seq,
                    (unsigned long long)rx->corrupt, fvm_err_name(rc));
        return rc;
    }
    if (b->seq <= rx->last_seq) {
        rx->late++;
        return 0;
    }
    rc = fvm_stream_rx_settle(rx, b->seq - 1);
    if (rc)
        return rc;
    rx->last_seq = b->seq;
    rx->batches++;
    rx->data_pages += b->data_pages;
    rx->zero_pages += b->zero_pages;
    apply(rx, b);
    return 0;
}
