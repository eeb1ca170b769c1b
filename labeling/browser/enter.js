// A link may carry the token behind the #, which no server sees and no log keeps.
function enter() {
  const token = decodeURIComponent(location.hash.slice(1));
  if (token) {
    history.replaceState(null, "", location.pathname);
    document.getElementById("token").value = token;
    document.forms[0].submit();
  }
}
addEventListener("hashchange", enter);
enter();
