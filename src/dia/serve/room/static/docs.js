// The service's description, drawn from /openapi.json.
window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#described",
  deepLinking: true,
  syntaxHighlight: false,
  validatorUrl: null,
});
