// The keys go to the screen from the start, and again after a click beside it.
function focusTerminal() {
  const keys = document.querySelector(".xterm-helper-textarea");
  if (keys) keys.focus();
  return Boolean(keys);
}
const waiting = setInterval(() => focusTerminal() && clearInterval(waiting), 100);
addEventListener("focus", focusTerminal);
addEventListener("click", focusTerminal);
