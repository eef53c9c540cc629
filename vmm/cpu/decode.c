/*
 * decode.c - instruction decoding, the one file that calls Zydis.
 *
 * The decoder is told to see what a processor without MPX, CET, CLDEMOTE and WBNOINVD sees: their encodings are NOPs
 * there (endbr64, bnd*, cldemote) or the older instruction (wbinvd), so that nobody else needs to know of them.
 * Keeps nothing between calls; a decoder is a few bytes and is made on the stack.
 */
#include "vmm/cpu/decode.h"

#include <stdio.h>
#include <string.h>

#include "vmm/cpu/state.h"

static void decoder_init(ZydisDecoder *dec, unsigned bits)
{
    if (bits == 64)
        ZydisDecoderInit(dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (bits == 32)
        ZydisDecoderInit(dec, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(dec, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderEnableMode(dec, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(dec, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(dec, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    ZydisDecoderEnableMode(dec, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
}

/*
 * Zydis 4.0 takes [disp32 + index*scale] with a 32-bit address size and REX.B (or VEX.B) for [r13d + index*scale]: mod 0 with
 * SIB base 5 has no base register, whatever that bit says.
 */
static void fix_no_base(struct fvm_insn *insn)
{
    const ZydisDecodedInstructionRaw *r = &insn->z.raw;

    if (!(insn->z.attributes & ZYDIS_ATTRIB_HAS_SIB) || r->modrm.mod != 0 || r->sib.base != 5)
        return;
    for (unsigned k = 0; k < insn->z.operand_count; k++) {
        ZydisDecodedOperand *o = &insn->ops[k];

        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.base != ZYDIS_REGISTER_R13D)
            continue;
        o->mem.base = ZYDIS_REGISTER_NONE;
        o->mem.disp.has_displacement = ZYAN_TRUE;
        o->mem.disp.value = r->disp.value;
    }
}

int fvm_decode(const uint8_t *code, size_t avail, unsigned bits, struct fvm_insn *ret_insn)
{
    ZydisDecoder dec;
    ZyanStatus st;

    if (!avail)
        return FVM_DECODE_SHORT;
    decoder_init(&dec, bits);
    avail = FVM_MIN(avail, (size_t)15);
    /* decode what is kept: another processor may be changing the original */
    memset(ret_insn->bytes, 0, sizeof(ret_insn->bytes));
    memcpy(ret_insn->bytes, code, avail);
    st = ZydisDecoderDecodeFull(&dec, ret_insn->bytes, avail, &ret_insn->z, ret_insn->ops);
    if (!ZYAN_SUCCESS(st))
        return st == ZYDIS_STATUS_NO_MORE_DATA && avail < 15 ? FVM_DECODE_SHORT : FVM_DECODE_BAD;
    fix_no_base(ret_insn);
    ret_insn->len = ret_insn->z.length;
    memset(ret_insn->bytes + ret_insn->len, 0, sizeof(ret_insn->bytes) - ret_insn->len);
    return FVM_DECODE_OK;
}

const char *fvm_decode_text(const struct fvm_insn *insn, uint64_t rip, char *buf, size_t size)
{
    ZydisFormatter fmt;

    ZydisFormatterInit(&fmt, ZYDIS_FORMATTER_STYLE_INTEL);
    if (!ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&fmt, &insn->z, insn->ops, insn->z.operand_count_visible, buf,
                                                      size, rip, NULL)))
        snprintf(buf, size, "(%u bytes)", insn->len);
    return buf;
}

int fvm_decode_gpr(ZydisRegister reg, bool *ret_high)
{
    if (ret_high)
        *ret_high = reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        return (int)(reg - ZYDIS_REGISTER_RAX);
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        return (int)(reg - ZYDIS_REGISTER_EAX);
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        return (int)(reg - ZYDIS_REGISTER_AX);
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return (int)(reg - ZYDIS_REGISTER_AL);
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return (int)(reg - ZYDIS_REGISTER_AH) + 4;
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return (int)(reg - ZYDIS_REGISTER_SPL) + 4;
    return -1;
}

int fvm_decode_seg(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS)
        return (int)(reg - ZYDIS_REGISTER_ES);
    return -1;
}

/* The arithmetic above rests on the order of Zydis' registers. */
_Static_assert(ZYDIS_REGISTER_BL - ZYDIS_REGISTER_AL == 3, "al cl dl bl");
_Static_assert(ZYDIS_REGISTER_BH - ZYDIS_REGISTER_AH == 3, "ah ch dh bh");
_Static_assert(ZYDIS_REGISTER_R15B - ZYDIS_REGISTER_SPL == 11, "spl bpl sil dil r8b..r15b");
_Static_assert(ZYDIS_REGISTER_R15W - ZYDIS_REGISTER_AX == 15 && ZYDIS_REGISTER_R15D - ZYDIS_REGISTER_EAX == 15 &&
                   ZYDIS_REGISTER_R15 - ZYDIS_REGISTER_RAX == 15, "sixteen of each width");
_Static_assert(ZYDIS_REGISTER_GS - ZYDIS_REGISTER_ES == FVM_GS, "es cs ss ds fs gs");

const char *fvm_decode_mnemonic(unsigned mnemonic)
{
    return mnemonic <= ZYDIS_MNEMONIC_MAX_VALUE ? ZydisMnemonicGetString((ZydisMnemonic)mnemonic) : NULL;
}
