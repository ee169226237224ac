"""Every part of GuidedMix by itself, with its shapes: `python blocks_alone.py`.

Needs `pip install gmix`. Some five seconds on one core.

Settings, honestly: random tensors in place of images, predictions and features. Nothing is trained.
"""

import torch

import gmix

torch.manual_seed(0)
N, M, K, H, W = 4, 3, 5, 32, 48  # unlabeled images, labeled images, classes, height, width
x_u, x_l, y_l = torch.randn(N, 3, H, W), torch.randn(M, 3, H, W), torch.randint(K, (M, H, W))

# Eq. 3: for each unlabeled image the most similar labeled one, by embeddings of your own.
partner = gmix.SimilarPairSelector()(torch.randn(N, 16), torch.randn(M, 16))
print("partners", partner.tolist())

# Eq. 2: mix them. Lambda weighs the labeled image.
mixed = gmix.LabeledUnlabeledMixer(max_lambda=0.3)(x_l[partner], x_u)
print("mixed", tuple(mixed.image.shape), "lambda", [round(v, 2) for v in mixed.lam.tolist()])

# Eq. 8: take the labeled part out of a mixed prediction. Here the prediction is a perfect mix.
p_l, p_u = torch.rand(2, N, K, H, W).softmax(2)
p_mix = gmix.functional.mix(p_l, p_u, mixed.lam)
decoupled = gmix.SoftDecoupler()(p_mix, p_l, mixed.lam)
print("decoupling is exact:", torch.allclose(decoupled, p_u, atol=1e-6))

# Eq. 4-5 and Fig. 4: attention, alone and with upsampling to the next finer feature map.
coarse, fine = torch.randn(N, 32, 8, 12), torch.randn(N, 16, 16, 24)
print("attention", tuple(gmix.NonLocalBlock(32)(coarse).shape))
print("MITrans", tuple(gmix.MITransBlock(32, 16, 24)(coarse, fine).shape))

# The strong view: colours change pixels only, boxes are pasted into images and masks alike.
view = gmix.StrongColor()(x_u)
pasted = gmix.CutMix()(view)
share = pasted.box.float().mean().item()
print("view", tuple(pasted.apply(view).shape), f"{100 * share:.0f} % pasted")

# Eq. 1, 9 and 10: every loss under its own name.
criterion = gmix.GuidedMixLoss(objective="cross_entropy", threshold=0.3)
losses = criterion(
    torch.randn(M, K, H, W),
    y_l,
    class_logits=torch.randn(M, K),
    logits_unlabeled=torch.randn(N, K, H, W),
    pseudo=pasted.apply(decoupled),
    progress=1.0,
)
print({name: round(loss.item(), 3) for name, loss in losses.items()})

# A teacher: a slow copy of any module.
student = torch.nn.Linear(2, 2)
teacher = gmix.EMATeacher(student, decay=0.99)
teacher.update(student)
print("teacher has moved", teacher.step.item(), "step")
