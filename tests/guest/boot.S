/* SPDX-License-Identifier: Apache-2.0
 * Both entries (PVH 32-bit, Linux 64-bit), static tables, interrupt stubs, and the few services of CPL 0.
 *
 * Everything after the first microseconds runs at CPL 3. Where KVM is software (no VMX, no SVM), CPL 0 is
 * emulated at 4 million instructions a second and lacks many of them, while CPL 3 is native; on hardware the
 * difference is nil. So tables are assembled, not computed, and CPL 0 code is short and plain.
 */

/* ---- interrupt stubs: 32 bytes each from 0x100000, so that the IDT below is a constant ---- */
	.section .stubs, "ax", @progbits
	.globl	stubs
stubs:
	.set	vec, 0
	.rept	32
	.balign	32
	.if vec == 6
	jmp	service
	.else
	.if vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21
	.else
	pushq	$0
	.endif
	pushq	$vec
	jmp	fault
	.endif
	.set	vec, vec + 1
	.endr
	.rept	31			/* 0x20 timer, 0x30.. devices: count, wake, EOI */
	.balign	32
	incl	irqs + 4 * (vec - 32)
	movb	$1, wake
	addr32 movl $0, 0xfee000b0
	iretq
	.set	vec, vec + 1
	.endr
	.balign	32
	iretq				/* 0x3f: spurious, no EOI */

/* Services of CPL 0, asked for by ud2 with a number in %esi: 0 sleep, 1 wrmsr, 2 rdmsr, 3 triple fault. */
service:
	addq	$2, (%rsp)
	testl	%esi, %esi
	jnz	1f
	cmpb	$0, wake		/* an interrupt that came since the last look must not be slept over */
	jne	2f
	sti				/* its shadow covers hlt: no wake-up is lost */
	hlt
	cli
2:	iretq
1:	cmpl	$2, %esi
	ja	3f
	je	4f
do_wrmsr:
	wrmsr
	iretq
4:
do_rdmsr:
	rdmsr
	iretq
3:	lidt	no_idt			/* no handler can be found: #UD, #DF, shutdown */
	ud2

/* Any other exception: an MSR that is not there reports -1; the rest go to C at CPL 3, which prints and stops. */
fault:
	cmpq	$13, (%rsp)
	jne	1f
	cmpq	$do_wrmsr, 16(%rsp)
	je	2f
	cmpq	$do_rdmsr, 16(%rsp)
	jne	1f
2:	addq	$16, %rsp		/* drop vector and code, step over the two bytes */
	addq	$2, (%rsp)
	movl	$-1, %esi
	iretq
1:	popq	%rdi
	popq	%rsi
	popq	%rdx
	movq	%cr2, %rcx
	movl	$0x23, %eax
	pushq	%rax
	pushq	$ustack_end - 8
	pushq	$2
	pushq	$0x1b
	pushq	$fault_c
	iretq

/* ---- entries ---- */
	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	start32

	.text
	.code32
	.globl	start32, start64
start32:
	cli
	movl	%ebx, boot_info
	movb	$1, boot_pvh
	lgdt	gdtp
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx	/* EFER.LME */
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000001, %eax
	movl	%eax, %cr0
	ljmp	$8, $common64

	.code64
start64:				/* Linux boot protocol, 64-bit: RSI = boot_params */
	cli
	movl	%esi, boot_info
	lgdt	gdtp
	movl	$pml4, %eax
	movq	%rax, %cr3
common64:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$tss, %eax
	movw	%ax, gdt + 0x28 + 2
	shrl	$16, %eax
	movb	%al, gdt + 0x28 + 4
	movl	$kstack_end, tss + 4	/* RSP0 */
	movw	$104, tss + 102		/* the I/O bitmap that follows is all zeros: every port is open to CPL 3 */
	movl	$0x28, %eax
	ltr	%ax
	lidt	idtp
	movl	$kstack_end, %esp
	pushq	$0x23
	pushq	$ustack_end - 8
	pushq	$0x3202			/* IF, IOPL 3 */
	pushq	$0x1b
	pushq	$start_c
	iretq

	.globl	memcpy, memset
memcpy:
	movq	%rdi, %rax
	movq	%rdx, %rcx
	rep movsb
	ret
memset:
	movq	%rdi, %r8
	movl	%esi, %eax
	movq	%rdx, %rcx
	rep stosb
	movq	%r8, %rax
	ret

/* ---- tables: all of the first and the fourth GiB in 2 MiB pages; the rest is mapped when it is used ---- */
	.section .data.page, "aw", @progbits
	.balign	4096
	.globl	pml4, pdpt
pml4:	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:	.quad	pd0 + 7, 0, 0, pd3 + 7
	.fill	508, 8, 0
pd0:	.set	n, 0
	.rept	512
	.quad	(n << 21) | 0x87
	.set	n, n + 1
	.endr
pd3:	.set	n, 1536
	.rept	512
	.quad	(n << 21) | 0x87
	.set	n, n + 1
	.endr
idt:	.set	n, 0
	.rept	64
	.word	n * 32, 8, 0x8e00, 0x10, 0, 0, 0, 0
	.set	n, n + 1
	.endr

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00209a0000000000	/* 08 code, CPL 0 */
	.quad	0x0000920000000000	/* 10 data */
	.quad	0x0020fa0000000000	/* 1b code, CPL 3 */
	.quad	0x0000f20000000000	/* 23 data */
	.quad	0x0000890000002068, 0	/* 28 TSS with 8 KiB of I/O bitmap */
gdtp:	.word	gdtp - gdt - 1
	.quad	gdt
idtp:	.word	64 * 16 - 1
	.quad	idt
no_idt:	.word	0
	.quad	0

	.globl	irqs, wake, boot_info, boot_pvh
	.bss
	.balign	64
irqs:	.skip	4 * 32
boot_info: .skip 8
boot_pvh: .skip	1
wake:	.skip	1
	.balign	16
	.skip	2048
kstack_end:
	.balign	16
	.skip	16384
ustack_end:
	.balign	4096
tss:	.skip	0x2069
	.section .note.GNU-stack, "", @progbits
