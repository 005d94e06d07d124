"""Draws the loss curves of a training log as an SVG, without further packages:  python plot.py log.json loss.svg"""
import json
import sys

W, H, LEFT, BOTTOM = 720, 320, 50, 40
run = json.load(open(sys.argv[1]))
points = [p for p in run["log"] if p["step"] >= 50]
end, top = max(p["canvases"] for p in points), 10 * -(-max(p["nats_noise"] for p in points) // 10)
at = lambda p, key: f"{LEFT + (W - LEFT - 10) * p['canvases'] / end:.1f},{10 + (H - BOTTOM - 10) * (1 - p[key] / top):.1f}"
line = lambda key, color: f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{" ".join(at(p, key) for p in points)}"/>'
out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{W}" height="{H}" font-family="sans-serif" font-size="11">', f'<rect width="{W}" height="{H}" fill="white"/>']
for i in range(6):
    y = 10 + (H - BOTTOM - 10) * (1 - i / 5)
    out.append(f'<line x1="{LEFT}" x2="{W - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{top * i / 5:.0f}</text>')
    x = LEFT + (W - LEFT - 10) * i / 5
    out.append(f'<text x="{x:.0f}" y="{H - BOTTOM + 16}" text-anchor="{"end" if i == 5 else "middle"}">{end * i / 5 / 1000:.0f} k</text>')
out += [line("nats_noise", "#c33"), line("nats", "#36c"), f'<text x="{W / 2}" y="{H - 8}" text-anchor="middle">canvases trained</text>',
        f'<text x="{W - 20}" y="24" text-anchor="end" fill="#c33">nats per canvas, from pure noise</text>', f'<text x="{W - 20}" y="40" text-anchor="end" fill="#36c">nats per canvas, all noise levels</text>', "</svg>"]
open(sys.argv[2], "w").write("\n".join(out) + "\n")
