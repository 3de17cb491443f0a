"use strict";
(() => {
  const stale = document.getElementById("stale");
  let heard = new Date();
  const refresh = async () => {
    const old = document.querySelector("main");
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(8000), cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const lefts = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
      old.replaceWith(page.querySelector("main"));
      document.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = lefts[i] || 0; });
      document.title = page.title;
      heard = new Date();
      stale.hidden = true;
    } catch {
      const seconds = Math.round((new Date() - heard) / 1000);
      stale.textContent = `Nothing answers since ${heard.toLocaleTimeString()} (${seconds} s). `
        + "What follows is old. Is the process running? Look at its log.";
      stale.hidden = false;
      old.classList.add("old");
      document.title = "?? Tidemark does not answer";
    }
    setTimeout(refresh, 5000);
  };
  setTimeout(refresh, 5000);
})();
